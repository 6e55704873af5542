"""A prepared corpus for training: who is held out, tasks, and batches on the device.

`Corpus` (numpy, from `data_prep.shards`) says what there is. `folds` deals songs and people to training, validation and test; `windows`
says which windows may be drawn; `inputs` what features are like; `tasks` draws annotators as tasks; `device` holds the
arrays that a jitted step gathers from; `batches` feeds steps from memory or from disk; `seen` keeps what a model was trained on.
"""

from dsaml_jax.corpus.batches import Drawn, TaskArrays, WindowArrays, batches, drawing
from dsaml_jax.corpus.device import DeviceCorpus, gather_windows, to_device
from dsaml_jax.corpus.folds import (
    AND,
    OWN_SPLIT,
    WHOLE,
    Fold,
    Part,
    balanced,
    consensus_target,
    dimensions,
    fold_of,
    held_out,
    identities,
    identity,
    recordings,
    song_weights,
)
from dsaml_jax.corpus.inputs import (
    CONSTANT,
    embeddings_of,
    input_statistics,
    song_embeddings,
)
from dsaml_jax.corpus.seen import Overlap, Seen, require_unseen, seen_in
from dsaml_jax.corpus.tasks import (
    TaskBatch,
    TaskPool,
    evaluation_tasks,
    evenly_spread,
    pool_of,
    same_song_tasks,
    uniform_stream,
)
from dsaml_jax.corpus.windows import labelled_windows, windows_to_draw

__all__ = [
    "AND",
    "CONSTANT",
    "OWN_SPLIT",
    "WHOLE",
    "DeviceCorpus",
    "Drawn",
    "Fold",
    "Overlap",
    "Part",
    "Seen",
    "TaskArrays",
    "TaskBatch",
    "TaskPool",
    "WindowArrays",
    "balanced",
    "batches",
    "consensus_target",
    "dimensions",
    "drawing",
    "embeddings_of",
    "evaluation_tasks",
    "evenly_spread",
    "fold_of",
    "gather_windows",
    "held_out",
    "identities",
    "identity",
    "input_statistics",
    "labelled_windows",
    "pool_of",
    "recordings",
    "require_unseen",
    "same_song_tasks",
    "seen_in",
    "song_embeddings",
    "song_weights",
    "to_device",
    "uniform_stream",
    "windows_to_draw",
]
