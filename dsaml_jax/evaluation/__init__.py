"""Scores of a model on held-out songs and listeners, and the simple baselines it has to beat.

Every prediction is made in eval mode (running statistics, no dropout). Protocols:

* `clean`: songs and annotators unseen in training; adapt on one song of the annotator, be judged on their
  other songs. Each annotator is tried with several support songs.
* `reference`: as published: adapt on the first 30 s of a test song, be judged on its rest (where there is none, on the
  same 30 s); annotators may have been seen in training. Only for comparison with published numbers.

A :class:`Trial` says what is to be predicted and what is true; `methods` predict it; `scores` compare.
"""

from dsaml_jax.evaluation.choosing import (
    FINE_TUNING,
    OFFSETS,
    STRENGTHS,
    VALIDATION_SUPPORTS,
    Settings,
    best_of,
    fitting,
    share_of,
)
from dsaml_jax.evaluation.evaluating import (
    ListenerCurves,
    evaluate,
    is_of,
    most_shared_song,
)
from dsaml_jax.evaluation.likelihood import Likeness
from dsaml_jax.evaluation.listeners import (
    differences,
    fit_listeners,
    inside,
    likeness_of,
    listeners_of,
)
from dsaml_jax.evaluation.methods import CurvesOfSongs, adapted, curves_of_songs
from dsaml_jax.evaluation.results import (
    Evaluation,
    keep_evaluation,
    levels_table,
    table,
    write_evaluation,
)
from dsaml_jax.evaluation.scores import (
    COLUMNS,
    LEVELS,
    METRICS,
    Scores,
    better_when,
    dimensions_of,
    level_agreement,
    level_errors,
    mean_scores,
    score_curves,
)
from dsaml_jax.evaluation.trials import (
    Judging,
    PartName,
    Protocol,
    Trial,
    agreed_judging,
    agreed_trial,
    judged_corpora,
    listener_judging,
    listener_trial,
)

__all__ = [
    "Likeness",
    "COLUMNS",
    "CurvesOfSongs",
    "LEVELS",
    "FINE_TUNING",
    "METRICS",
    "OFFSETS",
    "STRENGTHS",
    "VALIDATION_SUPPORTS",
    "Evaluation",
    "Judging",
    "ListenerCurves",
    "PartName",
    "Protocol",
    "Scores",
    "Settings",
    "Trial",
    "adapted",
    "agreed_judging",
    "agreed_trial",
    "best_of",
    "better_when",
    "curves_of_songs",
    "differences",
    "dimensions_of",
    "evaluate",
    "fit_listeners",
    "fitting",
    "inside",
    "level_agreement",
    "level_errors",
    "is_of",
    "judged_corpora",
    "keep_evaluation",
    "levels_table",
    "listener_judging",
    "listener_trial",
    "likeness_of",
    "listeners_of",
    "mean_scores",
    "most_shared_song",
    "score_curves",
    "share_of",
    "table",
    "write_evaluation",
]
