"""Strict settings for every test, and the stored arrays some of them compare to."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path

# Most of the suite's time is compilation; processes that tests start inherit this.
_FLAGS = "--xla_backend_optimization_level=0"
if version("jaxlib").startswith("0.10."):  # others end at a flag that they do not know
    # Half the time to compile. Later releases are that fast by themselves.
    _FLAGS += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ.setdefault("XLA_FLAGS", _FLAGS)

import filelock  # noqa: E402
import hypothesis  # noqa: E402
import jax  # noqa: E402 (reads the flags)
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from tests import golden_file, recipe  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
CACHE = Path(os.environ.get("DSAML_CACHE", ROOT / ".jax_cache"))

# The same examples for everyone. `--hypothesis-profile default` draws new ones.
hypothesis.settings.register_profile("same", derandomize=True, database=None)
hypothesis.settings.load_profile("same")

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(scope="session")
def golden():
    """Loads arrays made by the published implementation, of large ones a sample; see golden_file.py."""
    return golden_file.arrays


@pytest.fixture(params=["sample", "whole"])
def deep_golden(request):
    """`golden`, and once more with the large arrays whole, where they are."""
    if request.param == "sample":
        return golden_file.arrays
    folder = SHARED / "golden"
    if not folder.is_dir():
        pytest.skip("compared with the sample only: the whole arrays are not on this machine")
    return lambda name: dict(np.load(folder / f"{name}.npz"))


@pytest.fixture(scope="session")
def published_config():
    """Our configuration of the model that most of the arrays are of."""
    from dsaml_jax import ModelConfig

    stored = golden_file.facts("config")
    cfg = stored["cfg"]
    return ModelConfig(
        width=cfg["D"], num_heads=cfg["H"], num_layers=cfg["L"], ffn_width=stored["ffn"],
        local_context=cfg["lc"], global_context=cfg["gc"], dropout=0.0, precision="highest",
    )  # fmt: skip


@pytest.fixture(scope="session")
def published_variables(published_config):
    """Its weights."""
    from dsaml_jax import convert

    state_dict = recipe.weights(golden_file.shapes("state_dict_names"), recipe.SEED)
    return convert.from_torch(state_dict, published_config)


@pytest.fixture(scope="session")
def support(published_config):
    """Log-mel, embedding, arousal and valence of its one support song."""
    return recipe.inputs(recipe.SEED + 2, 1, 60, published_config.width)


@pytest.fixture(scope="session")
def query(published_config):
    """The same of its two query songs."""
    return recipe.inputs(recipe.SEED + 1, 2, 60, published_config.width)


@pytest.fixture(scope="session")
def real():
    """Folder of real recordings and labels."""
    folder = SHARED / "real"
    if not folder.is_dir():
        pytest.skip("the real recordings are not on this machine")
    return folder


SMALL_MODEL = (
    "model.width=16", "model.num_heads=2", "model.ffn_width=16", "training.steps=12",
    "training.log_every=2", "training.validate_every=4", "meta.tasks=3", "meta.query_songs=2",
    "meta.min_songs=2", "meta.steps=2", "training.validation_tasks=4", "training.batch_songs=3", "training.schedule=constant",
)  # fmt: skip
"""A run that takes a second after compiling. Its steps are a loop of whatever length: runs of 2 and of 40 share a program."""

SMALL_DMER = (*SMALL_MODEL, "training.task=dmer", "training.learning_rate=3e-3")
"""The same of DMER: tests that differ in nothing that is compiled share one program."""


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """`made_once(name, make)`: the folder that `make(folder)` filled, made by whichever worker needs it first."""
    common = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        common = common.parent

    def folder_of(name, make):
        folder, done = common / name, common / f"{name}.done"
        with filelock.FileLock(common / f"{name}.lock"):
            if not done.exists():
                make(folder)
                done.touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def small_data(made_once):
    """The embedded corpus at its smallest useful size: (root of the corpus, prepared data)."""
    from data_prep.deam import read_deam
    from data_prep.features import TINY
    from data_prep.prepare import prepare
    from data_prep.synthetic import write_corpus

    def make(folder):
        root = write_corpus(folder / "corpus", songs=30, annotators=15)
        prepare(read_deam(root, name="synthetic"), folder / "data", TINY)

    folder = made_once("small", make)
    return folder / "corpus", folder / "data"


@pytest.fixture(scope="session")
def elsewhere(made_once):
    """Prepared data of other songs and other people, with the same features."""
    from data_prep.deam import read_deam
    from data_prep.features import TINY
    from data_prep.prepare import prepare
    from data_prep.synthetic import write_corpus

    def make(folder):
        root = write_corpus(folder / "corpus", songs=10, annotators=8, seed=5)
        prepare(read_deam(root, name="elsewhere"), folder / "data", TINY)

    return made_once("elsewhere", make) / "data"


@pytest.fixture(scope="session")
def small_run(small_data, made_once):
    """A trained PDMER run on it. All workers share it: tests that write into a run copy it first."""
    from data_prep.shards import read_corpus
    from dsaml_jax.config import preset, with_settings
    from dsaml_jax.training import train

    def make(workdir):
        train(with_settings(preset("tiny"), SMALL_MODEL), read_corpus(small_data[1]), workdir)

    return made_once("small_run", make)


@pytest.fixture(scope="session")
def knowing_run(small_run, made_once):
    """The same, which knows how listeners differ as if it were from many: its own few say next to nothing."""
    import dataclasses
    import shutil

    from dsaml_jax.runs import Listeners, Spread, load_model, write_listeners

    def make(workdir):
        shutil.copytree(small_run, workdir, dirs_exist_ok=True)
        spread = Spread(between=0.04, within=0.08, moving=0.01, low=-0.4, high=0.4)
        known = Listeners(spread, spread, people=90, curves=900)
        write_listeners(workdir, dataclasses.replace(known, step=load_model(small_run).step))

    return made_once("knowing_run", make)


@pytest.fixture(scope="session")
def songs(small_data, tmp_path_factory):
    """Six songs, one of them with a name that is markup; and two files that are none."""
    import shutil

    import soundfile

    folder = tmp_path_factory.mktemp("songs")
    sounds = sorted((small_data[0] / "DEAM_audio" / "MEMD_audio").glob("*.flac"))[:6]
    for path, name in zip(sounds, ["one", "two", "three", "four", "five", "<img src=x onerror=alert(1)>"], strict=True):  # fmt: skip
        shutil.copy(path, folder / f"{name}.flac")
    (folder / "broken.mp3").write_bytes(b"not sound" * 50)
    soundfile.write(folder / "short.wav", np.zeros(8000), 8000)
    return folder
