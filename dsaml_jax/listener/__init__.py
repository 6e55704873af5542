"""Curves of whole songs, and one person's own model of them.

`curves` blends the windows of a song into one curve; `personal` reads a sound file and a person's annotations, adapts and predicts.
"""

from dsaml_jax.listener.curves import Variables, predict_song, song_curve
from dsaml_jax.listener.personal import (
    curve_table,
    personalize,
    personalize_on,
    predict_features,
    predict_file,
    read_annotations,
    require_enough,
    save_personalized,
    support_windows,
    write_curve,
)

__all__ = [
    "Variables",
    "curve_table",
    "personalize",
    "personalize_on",
    "predict_features",
    "predict_file",
    "predict_song",
    "read_annotations",
    "require_enough",
    "save_personalized",
    "song_curve",
    "support_windows",
    "write_curve",
]
