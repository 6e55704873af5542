"""A local web page: annotate a song, get a model of your ears, rate it blind.

`store` keeps what people do, `library` the songs, `modelling` the models' curves, `ratings` the blind comparison,
`export` what leaves the study, `forgetting` deletes somebody from it, `app` the pages and `serving` the command behind `dsaml studio`.
"""

from dsaml_jax.studio.forgetting import forget_by_name
from dsaml_jax.studio.serving import Settings, serve

__all__ = [
    "Settings",
    "forget_by_name",
    "serve",
]
