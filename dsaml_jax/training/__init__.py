"""Training: one loop for DMER and PDMER, that goes on bit for bit after whatever stops it.

`start` puts a run together, `state` finds where it was, `loop` takes the steps, `steps` is what happens in one of them;
`validating` judges; `stopping` listens to signals, `failures`
keeps the batch that made a step fail.
"""

from dsaml_jax.training.failures import Bundle, read_bundle, replay, replay_lines, write_bundle
from dsaml_jax.training.levels import fit_levels
from dsaml_jax.training.loop import train
from dsaml_jax.training.steps import TrainState, make_optimizer, make_pdmer_step
from dsaml_jax.training.validating import judging_lines

__all__ = [
    "Bundle",
    "TrainState",
    "fit_levels",
    "judging_lines",
    "make_optimizer",
    "make_pdmer_step",
    "read_bundle",
    "replay",
    "replay_lines",
    "train",
    "write_bundle",
]
