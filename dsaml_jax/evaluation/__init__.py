"""Scores of a model on held-out songs and listeners, and the simple baselines it has to beat.

Every prediction is made in eval mode (running statistics, no dropout). Protocols:

* `clean`: songs and annotators unseen in training; adapt on one song of the annotator, be judged on their
  other songs. Each annotator is tried with several support songs.
* `reference`: as published: adapt on the first 30 s of a test song, be judged on its rest (where there is none, on the
  same 30 s); annotators may have been seen in training. Only for comparison with published numbers.

A :class:`Trial` says what is to be predicted and what is true; `methods` predict it; `scores` compare.
"""

from dsaml_jax.evaluation.evaluate import (
    Evaluation,
    ListenerCurves,
    evaluate,
    keep_evaluation,
    table,
    write_evaluation,
)
from dsaml_jax.evaluation.scores import COLUMNS, METRICS, dimensions_of, mean_scores
from dsaml_jax.evaluation.trials import (
    Judging,
    Protocol,
    Trial,
    agreed_judging,
    agreed_trial,
    listener_judging,
    listener_trial,
)

__all__ = [
    "COLUMNS",
    "METRICS",
    "Evaluation",
    "Judging",
    "ListenerCurves",
    "Protocol",
    "Trial",
    "agreed_judging",
    "agreed_trial",
    "dimensions_of",
    "evaluate",
    "keep_evaluation",
    "listener_judging",
    "listener_trial",
    "mean_scores",
    "table",
    "write_evaluation",
]
