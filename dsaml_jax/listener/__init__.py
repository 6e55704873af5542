"""Curves of whole songs, and one person's own model of them.

`curves` blends the windows of a song into one curve, `predicting` makes one of a sound file; `annotations` reads what a
person drew, `personal` makes a model of them, `telling` says what it knows, and `suggesting` which song would tell more.
"""

from dsaml_jax.listener.annotations import annotated_in, read_annotations
from dsaml_jax.listener.curves import Variables, blended, predict_song, song_curve
from dsaml_jax.listener.personal import (
    DIGEST_DIGITS,
    Adapting,
    AnnotatedSong,
    Personalized,
    annotated_song,
    default_adapting,
    personalize,
    require_enough,
    save_personalized,
    sound_digest,
    support_batch,
    support_windows,
)
from dsaml_jax.listener.predicting import (
    Band,
    band_of,
    curve_table,
    features_of_file,
    predict_features,
    predict_file,
    write_curve,
)
from dsaml_jax.listener.suggesting import likeness, most_telling, song_embedding, suggest
from dsaml_jax.listener.telling import how_sure, how_you_hear

__all__ = [
    "DIGEST_DIGITS",
    "Adapting",
    "AnnotatedSong",
    "Band",
    "Personalized",
    "Variables",
    "annotated_in",
    "annotated_song",
    "band_of",
    "blended",
    "curve_table",
    "default_adapting",
    "features_of_file",
    "how_sure",
    "how_you_hear",
    "likeness",
    "most_telling",
    "personalize",
    "predict_features",
    "predict_file",
    "predict_song",
    "read_annotations",
    "require_enough",
    "save_personalized",
    "song_curve",
    "song_embedding",
    "sound_digest",
    "suggest",
    "support_batch",
    "support_windows",
    "write_curve",
]
