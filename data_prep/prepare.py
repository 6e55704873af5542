"""From a corpus on disk to a dataset: read, check, compute, write, describe."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from data_prep.base import AnnotatedCorpus
from data_prep.dataset import write_dataset
from data_prep.features import FeatureConfig
from data_prep.parallel import Progress
from data_prep.validation import Checked, check
from data_prep.writing import Engine, local_engine

Display = Callable[[str], AbstractContextManager[Progress | None]]
"""Opens a display of the progress of a stage with that name."""


def prepare(
    corpus: AnnotatedCorpus,
    out: Path,
    config: FeatureConfig,
    *,
    limit: int | None = None,
    weights: Path | None = None,
    workers: int | None = None,
    engine: Engine | None = None,
    display: Display = lambda stage: nullcontext(),
    on_checked: Callable[[Checked], None] = lambda checked: None,
) -> Path:
    """Prepares a corpus; the same call goes on after an interruption.

    Args:
      corpus: as one of the readers gives it.
      out: folder of prepared data.
      config: how features are made.
      limit: only so many songs, of those that have sound.
      weights: of ImageBind, for the embeddings that need them.
      workers: processes; None takes all cores.
      engine: another way to run the work, such as :func:`data_prep.beam.beam_engine`; shows its own
        progress, if any.
      display: shows progress.
      on_checked: told which files are missing or damaged, before the work begins.

    Returns:
      the dataset's folder.

    Raises:
      DataError: see :func:`data_prep.dataset.write_dataset`.
    """
    with display("checking") as progress:
        checked = check(corpus, limit=limit, workers=workers, progress=progress)
    on_checked(checked)
    if engine is not None:
        return write_dataset(corpus, checked, out, config, weights=weights, engine=engine)
    with display("features") as progress:
        local = local_engine(workers, progress)
        return write_dataset(corpus, checked, out, config, weights=weights, engine=local)
