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
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.base import STEPS_PER_SECOND, DataError, replacing
from data_prep.curves import fit, labelled_mean, on_grid
from dsaml_jax.errors import UsageError
from dsaml_jax.listener import (
    DIGEST_DIGITS,
    AnnotatedSong,
    band_of,
    default_adapting,
    how_sure,
    how_you_hear,
    personalize,
    predict_features,
    require_enough,
    save_personalized,
    song_embedding,
    suggest,
    support_windows,
)
from dsaml_jax.runs import LoadedModel, Person, load_model, read_person, weights_digest
from dsaml_jax.studio.forgetting import delete_song, forget
from dsaml_jax.studio.library import Library, StudioSong
from dsaml_jax.studio.store import Participant, Row, Store
from dsaml_jax.studio.takes import drawn_curve

log = logging.getLogger("dsaml_jax.studio")

_FIRST, _NOW, _SOON, _LATER = range(4)
_MODELS_IN_MEMORY = 8
_SUGGESTIONS_IN_MEMORY = 32


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
        """Starts to work: compiling first, then what an earlier start left undone, then the curves of all songs.

        Args:
          loaded: the model that adapts.
          everyone: the model of what listeners agree on; None: `loaded`, unadapted.
          library: the songs.
          store: of the study.
          study: its folder.
        """
        loaded = dataclasses.replace(loaded, person=None)  # whoever takes part is somebody else
        self._loaded, self._everyone = loaded, everyone or loaded
        self._library, self._store = library, store
        self._study = study
        self._curves, self._models = study / "cache" / "curves", study / "models"
        self._keys = {
            "before": f"model-{weights_digest(loaded)[:16]}",
            "everyone": f"model-{weights_digest(self._everyone)[:16]}",
        }
        self._stages: dict[int, str] = {}
        self._embeddings: dict[str, np.ndarray] = {}
        self._suggested: OrderedDict[tuple[tuple[str, ...], tuple[int, ...]], list[int]] = OrderedDict()  # fmt: skip
        self._personal: OrderedDict[int, LoadedModel] = OrderedDict()
        self._jobs: queue.PriorityQueue[tuple[int, int, Callable[[], None] | None]] = queue.PriorityQueue()  # fmt: skip
        self._to_decode: queue.Queue[StudioSong | None] = queue.Queue()
        self._order = itertools.count()

        songs = list(library)
        for song in {_windows(song): song for song in songs}.values():
            self._add(_SOON, partial(self._warm_up, song))
        self._take_up()
        for song in songs:
            self.prepare(song)
        self._threads = [
            threading.Thread(target=work, name=f"studio-{name}", daemon=True)
            for name, work in (("models", self._work), ("decoding", self._decode))
        ]
        for thread in self._threads:
            thread.start()

    def _take_up(self) -> None:
        """What people asked for before the studio was stopped."""
        people = {who.id: who for who in self._store.participants()}
        for row in self._store.unfinished_adaptations():
            who, song = people[row["participant"]], self._library.get(row["song"])
            if song is None or self.labels(who, song) is None:
                self._store.end_adaptation(row["id"], error="the song is not in the study any more")
            else:
                self._add(_NOW, partial(self._adapt, row["id"], who))

    def close(self) -> None:
        """Finishes the job at hand and stops."""
        self._add(_FIRST, None)
        self._to_decode.put(None)
        for thread in self._threads:
            thread.join()

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

    def band(self, which: str, song: StudioSong) -> list[list[list[float | None]] | None] | None:
        """Rows of the lower and of the upper bound around :meth:`curve`; None where there is no curve, or none is known."""
        curve = self.curve(which, song)
        if which in self._keys:
            loaded = self._everyone
        else:
            loaded = dataclasses.replace(self._loaded, person=self._person_of(int(which)))
        bounds = None if curve is None else band_of(loaded, curve)
        return None if bounds is None else [curve_rows(bound) for bound in bounds]

    def about(self, number: int) -> dict[str, Any]:
        """What an adaptation knows of its person: `songs`, how many, 0 where it does not say; and `words`, sentences."""
        person, listeners = self._person_of(number), self._loaded.listeners
        if person is None or listeners is None:
            return {"songs": 0, "words": []}
        words = how_you_hear(person), how_sure(listeners, person)
        return {"songs": len(person.songs), "words": [x for x in words if x]}

    def labels(self, who: Participant, song: StudioSong) -> np.ndarray | None:
        """`[n, 2]` what a participant drew for a song, NaN where nothing; None: nothing at all.

        Of each dimension the take that was finished last counts.
        """
        takes = [take for take in self._store.finished_takes(who) if take["song"] == song.number]
        drawn = {}
        for column, dimension in enumerate(("arousal", "valence")):
            mine = [take for take in takes if take["dimension"] in ("both", dimension)]
            if mine:
                curve = drawn_curve(self._store.entries(mine[-1]["id"]))
                if len(curve):
                    drawn[column] = curve[:, [0, 1 + column, 1 + column]]
        if not drawn:
            return None
        # A file's header may be wrong about its length; what was drawn was heard.
        end = max(song.seconds, *(curve[-1, 0] for curve in drawn.values()))
        found = np.full((int(end * STEPS_PER_SECOND), 2), np.nan, np.float32)
        for column, curve in drawn.items():
            found[:, column] = on_grid(curve, len(found))[:, 0]
        return found if np.isfinite(found).any() else None

    def adapt(self, who: Participant, song: StudioSong) -> int:
        """Asks for an adaptation to all songs that they drew; returns its number.

        Args:
          who: the participant.
          song: which they drew last.

        Raises:
          DataError: too little of that is drawn.
        """
        labels = self.labels(who, song)
        if labels is None:
            labels = np.full((1, 2), np.nan, np.float32)
        require_enough(labels, song.name)
        number = self._store.add_adaptation(who, song.number)
        self._add(_NOW, partial(self._adapt, number, who))
        return number

    def suggested(self, who: Participant, drawn: set[int]) -> int | None:
        """The number of the song that would tell most about a participant; None where all are drawn, or none is known yet.

        Args:
          who: sees other songs than somebody else.
          drawn: numbers of the songs that they have drawn.
        """
        songs = [song for song in self._library.of(who) if song.digest in self._embeddings]
        known = tuple(place for place, song in enumerate(songs) if song.number in drawn)
        key = tuple(song.digest for song in songs), known
        found = self._suggested.get(key)
        if found is None:
            embeddings = np.array([self._embeddings[song.digest] for song in songs])
            found = self._suggested[key] = suggest(embeddings, known, 1)
            if len(self._suggested) > _SUGGESTIONS_IN_MEMORY:
                self._suggested.popitem(last=False)
        return next((songs[place].number for place in found), None)

    def forget(self, who: Participant) -> None:
        """Deletes a person, and returns when nothing of them is left; see :func:`dsaml_jax.studio.forgetting.forget`."""
        done: Future[None] = Future()

        def job() -> None:
            try:
                for number in self._store.all_adaptations(who):
                    self._personal.pop(number, None)
                    self._stages.pop(number, None)
                own = {song.number for song in self._library if song.brought_by is None}
                for song in self._store.brought_by_alone(who):
                    if song.number not in own:
                        self._library.forget(song.number)
                        self._embeddings.pop(song.digest, None)
                forget(self._study, self._store, who, own)
            except BaseException as error:
                done.set_exception(error)
                raise
            done.set_result(None)

        self._add(_FIRST, job)  # between two jobs: none works for them meanwhile
        done.result()

    @property
    def learned(self) -> tuple[str, ...]:
        """The dimensions that the model that adapts knows."""
        return self._loaded.info.dimensions

    def progress(self, adaptation: Row) -> Progress:
        """How far an adaptation is, by what the store and the files say."""
        number = adaptation["id"]
        songs = list(self._library)
        found = Progress(of=len(songs), error=adaptation["error"] or "")
        if adaptation["finished"] is None or found.error:
            found.stage = self._stages.get(number, found.stage)
            return found
        found.done = sum(self._path(str(number), song).is_file() for song in songs)
        found.finished = found.done == found.of
        found.stage = "done" if found.finished else "your curves"
        return found

    def model_folder(self, number: int) -> Path:
        """The personalised checkpoint of an adaptation."""
        return self._models / str(number)

    def prepare(self, song: StudioSong) -> None:
        """Has the song decoded and all its curves computed some time."""
        self._to_decode.put(song)

    # ---- In the threads.

    def _add(self, priority: int, job: Callable[[], None] | None) -> None:
        self._jobs.put((priority, next(self._order), job))

    def _work(self) -> None:
        while (job := self._jobs.get()[2]) is not None:
            try:
                job()
            except Exception:
                log.exception("a job of the studio failed")

    def _decode(self) -> None:
        """Apart from the models: nobody's adaptation waits for a file that is hard to decode."""
        while (song := self._to_decode.get()) is not None:
            try:
                self._embeddings[song.digest] = song_embedding(self._library.features(song))
            except DataError as error:
                if self._library.get(song.number) is None:  # forgotten
                    continue
                log.warning("left out: %s", error)
                self._library.refuse(song, str(error))
                continue
            if self._library.get(song.number) is None:
                self._embeddings.pop(song.digest, None)
                delete_song(self._study, song.digest)
                continue
            self._add(_LATER, partial(self._predict_general, song))
            for number in self._store.adaptations_in_use():
                if not self._path(str(number), song).is_file():
                    self._add(_LATER, partial(self._predict_adapted, number, song))

    def _path(self, which: str, song: StudioSong) -> Path:
        return self._curves / self._keys.get(which, f"adapted-{which}") / f"{song.digest}.npy"

    def _predict(self, which: str, loaded: LoadedModel, song: StudioSong) -> None:
        path = self._path(which, song)
        if not path.is_file():
            curve = predict_features(loaded, loaded.variables, self._library.features(song))
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.save(file, curve.clip(-1.0, 1.0))

    def _predict_general(self, song: StudioSong) -> None:
        if self._library.get(song.number) is None:
            return
        self._predict("before", self._loaded, song)
        self._predict("everyone", self._everyone, song)

    def _predict_adapted(self, number: int, song: StudioSong) -> None:
        if self._store.adaptation(number) is not None and self._library.get(song.number) is not None:  # fmt: skip
            self._predict(str(number), self._personal_model(number), song)

    def _personal_model(self, number: int) -> LoadedModel:
        if number not in self._personal:
            self._keep(number, load_model(self.model_folder(number)))
        return self._personal[number]

    def _person_of(self, number: int) -> Person | None:
        folder = self.model_folder(number)
        return read_person(folder) if folder.is_dir() else None

    def _keep(self, number: int, personal: LoadedModel) -> None:
        self._personal[number] = personal
        if len(self._personal) > _MODELS_IN_MEMORY:
            self._personal.popitem(last=False)

    def _warm_up(self, song: StudioSong) -> None:
        """Compiles what adapting to songs of this length will need."""
        try:
            features = self._library.features(song)
        except DataError:
            return  # it is left out soon
        labels = np.zeros((len(features.log_mel), 2), np.float32)
        personalize(self._loaded, [AnnotatedSong("warming up", "", labels, features)])

    def _adapt(self, number: int, who: Participant) -> None:
        if self._store.adaptation(number) is None:  # they were forgotten
            return
        try:
            self._stages[number] = "listening to your songs"
            songs = self._drawn(who)
            self._stages[number] = "adapting"
            result = personalize(self._loaded, songs)
            folder = self.model_folder(number)
            shutil.rmtree(folder, ignore_errors=True)  # of a start that was cut off
            save_personalized(folder, result, [song.name for song in songs])
            self._keep(number, result.loaded)
        except (DataError, UsageError) as error:
            self._store.end_adaptation(number, error=str(error))
            return
        except Exception:
            self._store.end_adaptation(number, error="something went wrong here; the studio's log says what")  # fmt: skip
            raise
        before, after = (float(labelled_mean(x)) for x in (result.before, result.after))
        self._store.end_adaptation(number, before=before, after=after)
        for other in self._library:
            self._add(_SOON, partial(self._predict_both, number, other))

    def _drawn(self, who: Participant) -> list[AnnotatedSong]:
        """What a participant drew, each song once, as far as it is enough to adapt to."""
        found = []
        for song in self._library:
            labels = self.labels(who, song)
            if labels is None or not len(support_windows(labels)):
                continue
            features, curve = self._library.features(song), None
            if default_adapting(self._loaded) == "prior":
                self._predict("before", self._loaded, song)
                curve = self.curve("before", song)
            drawn = fit(labels, len(features.log_mel))
            found.append(
                AnnotatedSong(song.name, song.digest[:DIGEST_DIGITS], drawn, features, curve)
            )
        return found

    def _predict_both(self, number: int, song: StudioSong) -> None:
        if self._library.get(song.number) is not None:
            try:
                self._predict_general(song)
                self._predict_adapted(number, song)
            except DataError as error:
                log.warning("%s", error)


def _windows(song: StudioSong) -> int:
    """How many windows of a song adaptation reads: what it is compiled for."""
    return len(support_windows(np.zeros((int(song.seconds * STEPS_PER_SECOND), 2))))


def curve_rows(curve: np.ndarray | None) -> list[list[Any]] | None:
    """A curve for JSON: rows of arousal and valence, None where there is none."""
    if curve is None:
        return None
    return [[None if np.isnan(x) else round(float(x), 4) for x in row] for row in curve]
