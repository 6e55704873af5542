"""Experiments: one module each, with a function `experiment()` whose docstring is its contract.

`dsaml experiment NAME` runs them. The folder `benchmarks/` and the other scripts here are run by themselves.
"""

NAMES = {
    "dmer": "dmer",
    "pdmer": "pdmer",
    "shots": "shots",
    "tasks": "tasks",
    "meta-gradients": "meta_gradients",
}
"""Name of an experiment -> its module."""
