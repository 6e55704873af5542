"""What the published implementation computes, in one file that every clone has.

`data/golden.npz` holds results (no code) of Littleor/Personalized-DMER at commit 20b12ea, run on a CPU with
torch 2.13.0, transformers 4.37.2, torchaudio 2.11.0 and learn2learn 0.2.0. Its inputs and weights are drawn again by
:mod:`tests.recipe`. Of the published tagger musicnn 0.1.0 it holds what it says of three seconds of music, and these as
the mel powers that it rounds to float16. Of an array with more than `LIMIT` entries it holds a sample, in full precision.

The file is made from the folder of whole arrays, the same bytes every time::

    python -m tests.golden_file FOLDER
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import numpy as np

FILE = Path(__file__).parent / "data" / "golden.npz"
LIMIT = 512
HEADER = 100_000  # bytes: a record's header lists the names of its arrays

KEPT: dict[str, tuple[str, ...]] = {
    "forward_eval": (),
    "forward_eval_T23": (),
    "forward_eval_pos_absolute": (),
    "forward_eval_pos_relative_key_query": (),
    "forward_train": (),
    "loss_eval": (),
    "loss_train": (),
    "inner_sgd": (),
    "meta_first_order": (),
    "meta_second_order": (),
    "full_1024": (),
    "scores": (),
    "slide_inference": ("real_eval_T60_",),
    "audio_logmel": ("log_mel_", "read_stereo48k"),
    "music_segmentation": ("seg_",),
    "imagebind_fbank": ("fbank", "melspec", "clip"),
    "imagebind_audio": ("tokens", "block", "head_out", "embedding_"),
}
"""Files of the folder, and how the names of the arrays begin that are kept; () keeps all."""

FACTS = ("config", "state_dict_names", "full_1024_names", "imagebind_audio_names")
"""Files of JSON: the settings of the run, and the names and shapes of the published parameters."""


def sample(array: np.ndarray) -> np.ndarray:
    """`LIMIT` of the entries, drawn without replacement; the same ones for all arrays of a size."""
    if array.size <= LIMIT:
        return array
    places = np.random.RandomState(array.size).choice(array.size, LIMIT, replace=False)
    return array.ravel()[places]


def like(actual: np.ndarray, stored: np.ndarray) -> np.ndarray:
    """The entries of `actual` that are stored: all of them or the sample."""
    actual = np.asarray(actual)
    return actual if actual.shape == stored.shape else sample(actual)


@functools.cache
def arrays(name: str) -> dict[str, np.ndarray]:
    """What is kept of one file of the folder."""
    with np.load(FILE, max_header_size=HEADER) as file:
        record = file[name]
    return {key: record[key] for key in record.dtype.names}


def facts(name: str):
    """One file of JSON."""
    with np.load(FILE) as file:
        return json.loads(file[name].item())


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a published model's tensors, each under its first name."""
    alias = "multi_scale_attention.multi_scale_attention."
    return {key: tuple(x) for key, x in facts(name).items() if not key.startswith(alias)}


def packed(whole: dict[str, np.ndarray]) -> np.ndarray:
    """Arrays as the fields of one record: hundreds of small arrays share one header."""
    kept = {key: sample(array) for key, array in whole.items()}
    record = np.zeros((), [(key, array.dtype, array.shape) for key, array in kept.items()])
    for key, array in kept.items():
        record[key] = array
    return record


def make(folder: Path) -> dict[str, np.ndarray]:
    """The contents of the file, from the folder of whole arrays."""
    contents = {name: np.array((folder / f"{name}.json").read_bytes()) for name in FACTS}
    for name, beginnings in KEPT.items():
        with np.load(folder / f"{name}.npz") as file:
            keys = [key for key in file.files if not beginnings or key.startswith(beginnings)]
            contents[name] = packed({key: file[key] for key in keys})
    with np.load(folder / f"{MUSICNN}.npz") as file:
        contents[MUSICNN] = one_patch({key: file[f"1001:{key}"][0] for key in TAGGED})
    return contents


MUSICNN = "musicnn"
TAGGED = ("log_mel", "tags", "penultimate", "mean_pool", "max_pool")


def one_patch(whole: dict[str, np.ndarray]) -> np.ndarray:
    """Of a patch, its power in float16 in place of its log-mel: all of it, since a network needs it whole."""
    power = ((10.0 ** whole.pop("log_mel").astype(np.float64) - 1.0) / 10_000.0).astype(np.float16)
    kept = {"power": power} | whole
    record = np.zeros((), [(key, array.dtype, array.shape) for key, array in kept.items()])
    for key, array in kept.items():
        record[key] = array
    return record


if __name__ == "__main__":
    np.savez_compressed(FILE, **make(Path(sys.argv[1])))
