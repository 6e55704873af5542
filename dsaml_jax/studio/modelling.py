"""The models of a study: curves of every song by everyone's model and by each listener's own.

All work on the device is done by one thread, what people wait for first. Curves are kept as files, so a study that
is started again has them at once.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import queue
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.base import DataError, replacing
from data_prep.curves import on_grid
from data_prep.features import window_starts
from dsaml_jax.base import MIN_LABELLED_STEPS, STEPS_PER_SECOND
from dsaml_jax.checkpoints import LoadedModel, load_model, weights_digest
from dsaml_jax.errors import UsageError
from dsaml_jax.inference import Variables
from dsaml_jax.personalize import (
    SUPPORT_WINDOWS,
    personalize_on,
    predict_features,
    save_personalized,
)
from dsaml_jax.studio.library import Library, StudioSong
from dsaml_jax.studio.store import Participant, Store
from dsaml_jax.studio.takes import drawn_curve

log = logging.getLogger("dsaml_jax.studio")

_NOW, _SOON, _LATER = 0, 1, 2


@dataclasses.dataclass
class Progress:
    """How far an adaptation is.

    Attributes:
      stage: in words.
      done, of: curves of songs.
      error: why it failed, or empty.
      finished: whether the curve of every song is there.
    """

    stage: str = "waiting"
    done: int = 0
    of: int = 0
    error: str = ""
    finished: bool = False


class Modelling:
    """Answers with curves, and adapts."""

    def __init__(
        self, loaded: LoadedModel, everyone: LoadedModel | None, library: Library, store: Store, study: Path
    ) -> None:  # fmt: skip
        """Starts to work: compiling first, then the curves of all songs.

        Args:
          loaded: the model that adapts.
          everyone: the model of what listeners agree on; None: `loaded`, unadapted.
          library: the songs.
          store: of the study.
          study: its folder.
        """
        self._loaded, self._everyone = loaded, everyone or loaded
        self._library, self._store = library, store
        self._curves, self._models = study / "cache" / "curves", study / "models"
        self._keys = {
            "before": f"model-{weights_digest(loaded)[:16]}",
            "everyone": f"model-{weights_digest(self._everyone)[:16]}",
        }
        self._progress: dict[int, Progress] = {}
        self._jobs: queue.PriorityQueue[tuple[int, int, Callable[[], None] | None]] = queue.PriorityQueue()  # fmt: skip
        self._order = itertools.count()
        lengths = {_windows(song): song for song in library}
        for song in lengths.values():
            self._add(_SOON, lambda song=song: self._warm_up(song))  # type: ignore[misc]
        for song in library:
            self.prepare(song)
        self._thread = threading.Thread(target=self._work, name="studio-models", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Finishes the job at hand and stops."""
        self._add(-1, None)
        self._thread.join()

    def wait_until_warm(self) -> None:
        """Returns when everything that is compiled beforehand is compiled."""
        done = threading.Event()
        self._add(_SOON, done.set)
        done.wait()

    # ---- For the pages.

    def curve(self, which: str, song: StudioSong) -> np.ndarray | None:
        """`[n, 2]` arousal and valence of a song, or None where it is not computed yet.

        Args:
          which: `everyone`, `before`, or the number of an adaptation.
          song: of the library.
        """
        path = self._path(which, song)
        return np.load(path) if path.is_file() else None

    def labels(self, who: Participant, song: StudioSong) -> np.ndarray | None:
        """`[n, 2]` what a participant drew for a song, NaN where nothing; None: nothing at all.

        Of each dimension the latest finished take counts.
        """
        steps = int(song.seconds * STEPS_PER_SECOND)
        found = np.full((steps, 2), np.nan, np.float32)
        takes = [take for take in self._store.finished_takes(who) if take["song"] == song.number]
        for column, dimension in enumerate(("arousal", "valence")):
            mine = [take for take in takes if take["dimension"] in ("both", dimension)]
            if mine:
                drawn = drawn_curve(self._store.entries(mine[-1]["id"]))
                if len(drawn):
                    found[:, column] = on_grid(drawn[:, [0, 1 + column, 1 + column]], steps)[:, 0]
        return found if np.isfinite(found).any() else None

    def adapt(self, who: Participant, song: StudioSong) -> int:
        """Asks for an adaptation to what they drew for a song; returns its number.

        Raises:
          DataError: too little is drawn.
        """
        labels = self.labels(who, song)
        drawn = 0 if labels is None else int(np.isfinite(labels).all(axis=1).sum())
        if labels is None or drawn < MIN_LABELLED_STEPS:
            raise DataError(
                f"{drawn / STEPS_PER_SECOND:g} s of arousal and valence are annotated; at least "
                f"{MIN_LABELLED_STEPS / STEPS_PER_SECOND:g} s are needed"
            )
        number = self._store.add_adaptation(who, song.number)
        self._progress[number] = Progress(of=len(self._library))
        self._add(_NOW, lambda: self._adapt(number, song, labels))
        return number

    def progress(self, number: int) -> Progress:
        """How far an adaptation is; one of an earlier start is finished."""
        return self._progress.get(number, Progress(stage="done", finished=True))

    def model_folder(self, number: int) -> Path:
        """The personalised checkpoint of an adaptation."""
        return self._models / str(number)

    def prepare(self, song: StudioSong) -> None:
        """Has the curves of a song computed some time."""
        self._add(_LATER, lambda: self._predict_general(song))
        for number in [number for number, known in self._progress.items() if known.finished]:
            self._add(_LATER, lambda number=number: self._predict_adapted(number, song))  # type: ignore[misc]

    # ---- In the thread.

    def _add(self, priority: int, job: Callable[[], None] | None) -> None:
        self._jobs.put((priority, next(self._order), job))

    def _work(self) -> None:
        while (job := self._jobs.get()[2]) is not None:
            try:
                job()
            except (DataError, UsageError) as error:
                log.warning("%s", error)
            except Exception:
                log.exception("a job of the studio failed")

    def _path(self, which: str, song: StudioSong) -> Path:
        return self._curves / self._keys.get(which, f"adapted-{which}") / f"{song.digest}.npy"

    def _predict(self, which: str, loaded: LoadedModel, variables: Variables, song: StudioSong) -> None:  # fmt: skip
        path = self._path(which, song)
        if not path.is_file():
            curve = predict_features(loaded, variables, self._library.features(song))
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.save(file, curve.clip(-1.0, 1.0))

    def _predict_general(self, song: StudioSong) -> None:
        self._predict("before", self._loaded, self._loaded.variables, song)
        self._predict("everyone", self._everyone, self._everyone.variables, song)

    def _predict_adapted(self, number: int, song: StudioSong) -> None:
        personal = load_model(self.model_folder(number))
        self._predict(str(number), personal, personal.variables, song)

    def _warm_up(self, song: StudioSong) -> None:
        """Compiles what adapting to songs of this length will need."""
        features = self._library.features(song)
        labels = np.zeros((len(features.log_mel), 2), np.float32)
        personalize_on(self._loaded, features, labels, what="warming up")

    def _adapt(self, number: int, song: StudioSong, labels: np.ndarray) -> None:
        progress = self._progress[number]
        try:
            progress.stage = "listening to your song"
            features = self._library.features(song)
            progress.stage = "taking the inner steps"
            fitted = np.full((len(features.log_mel), 2), np.nan, np.float32)
            fitted[: len(labels)] = labels[: len(fitted)]
            result = personalize_on(self._loaded, features, fitted, what=song.name)
            folder = self.model_folder(number)
            shutil.rmtree(folder, ignore_errors=True)
            save_personalized(folder, self._loaded, result, song.name)
            progress.stage = "your curves"
            self._predict_general(song)
            self._predict(str(number), self._loaded, result.variables, song)
        except (DataError, UsageError) as error:
            progress.error = str(error)
            self._store.end_adaptation(number, error=str(error))
            return
        except Exception:
            progress.error = "something went wrong here; the log of the studio says what"
            self._store.end_adaptation(number, error=progress.error)
            raise
        before, after = float(result.before.mean()), float(result.after.mean())
        self._store.end_adaptation(number, before=before, after=after)
        self._add(_SOON, lambda: self._rest(number, result.variables))

    def _rest(self, number: int, variables: Variables) -> None:
        """Curves of all songs, one after the other, letting others in between."""
        progress = self._progress[number]
        for song in self._library:
            if not self._path(str(number), song).is_file():
                try:
                    self._predict_general(song)
                    self._predict(str(number), self._loaded, variables, song)
                except DataError as error:  # a song nobody can decode has no curve
                    log.warning("%s", error)
                    continue
                progress.done = sum(self._path(str(number), other).is_file() for other in self._library)  # fmt: skip
                self._add(_SOON, lambda: self._rest(number, variables))
                return
        progress.done, progress.stage, progress.finished = progress.of, "done", True


def _windows(song: StudioSong) -> int:
    """How many windows of a song adaptation reads: what it is compiled for."""
    return min(len(window_starts(int(song.seconds * STEPS_PER_SECOND))), SUPPORT_WINDOWS)


def curve_rows(curve: np.ndarray | None) -> list[list[Any]] | None:
    """A curve for JSON: rows of arousal and valence, None where there is none."""
    if curve is None:
        return None
    return [[None if np.isnan(x) else round(float(x), 4) for x in row] for row in curve]
