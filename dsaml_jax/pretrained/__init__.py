"""The model that comes with the package: everyone's curves of real music, learned from DEAM. Read `MODEL_CARD.md`."""

from importlib import resources
from pathlib import Path

_HERE = Path(str(resources.files(__package__)))

MODEL = _HERE / "deam.safetensors"
"""What :func:`dsaml_jax.load_model` reads; made by `experiments/pretrained.py`."""

EXAMPLE = _HERE / "hungarian_dance_5.ogg"
"""45 s of Brahms, Hungarian Dance No. 5, by the United States Army Strings; public domain."""

__all__ = ["EXAMPLE", "MODEL"]
