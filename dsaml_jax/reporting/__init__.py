"""Pages and figures for people: the report of a run, of the demo, and the drawings of both."""

from dsaml_jax.reporting.figures import draw_song_curve, to_svg, write_vector
from dsaml_jax.reporting.report import Picture, commit, environment, write_report
from dsaml_jax.reporting.run_page import write_run_report

__all__ = [
    "Picture",
    "commit",
    "environment",
    "draw_song_curve",
    "to_svg",
    "write_report",
    "write_run_report",
    "write_vector",
]
