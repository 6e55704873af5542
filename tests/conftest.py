"""Strict settings for every test, and the stored arrays some of them compare to."""

from __future__ import annotations

import os
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
CACHE = Path(os.environ.get("DSAML_CACHE", ROOT / ".jax_cache"))

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(scope="session")
def golden():
    """Loads arrays made by the published implementation."""
    folder = SHARED / "golden"
    if not folder.is_dir():
        pytest.skip("the arrays of the published implementation are not on this machine")
    return lambda name: dict(np.load(folder / f"{name}.npz"))


@pytest.fixture(scope="session")
def real():
    """Folder of real recordings and labels."""
    folder = SHARED / "real"
    if not folder.is_dir():
        pytest.skip("the real recordings are not on this machine")
    return folder
