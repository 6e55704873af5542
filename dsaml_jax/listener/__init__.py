"""Curves of whole songs, and one person's own model of them.

`curves` blends the windows of a song into one curve, `predicting` makes one of a sound file; `annotations` reads what a
person drew, `personal` makes a model of them, and `telling` says what it knows.
"""

from dsaml_jax.listener.annotations import annotated_in, read_annotations
from dsaml_jax.listener.curves import Variables, predict_song, song_curve
from dsaml_jax.listener.personal import (
    Adapting,
    AnnotatedSong,
    Personalized,
    annotated_song,
    default_adapting,
    personalize,
    require_enough,
    save_personalized,
    support_batch,
    support_windows,
)
from dsaml_jax.listener.predicting import (
    Band,
    band_of,
    curve_table,
    predict_features,
    predict_file,
    write_curve,
)
from dsaml_jax.listener.telling import how_sure, how_you_hear

__all__ = [
    "Adapting",
    "AnnotatedSong",
    "Band",
    "Personalized",
    "Variables",
    "annotated_in",
    "annotated_song",
    "band_of",
    "curve_table",
    "default_adapting",
    "how_sure",
    "how_you_hear",
    "personalize",
    "predict_features",
    "predict_file",
    "predict_song",
    "read_annotations",
    "require_enough",
    "save_personalized",
    "song_curve",
    "support_batch",
    "support_windows",
    "write_curve",
]
