"""What a run leaves in its folder, and how it is read: `run.json`, checkpoints, metrics, status.

`info` is the run's identity, `store` its Orbax checkpoints, `variables` what a model's numbers look like, `loading` a
model loaded or saved, `export` one in a single file, `spread` and `listeners` how single people differ from it
(`listener_files` keeps that), `log` what is written while it trains.
"""

from dsaml_jax.runs.export import export_model
from dsaml_jax.runs.info import RunInfo, read_run_info, write_run_info
from dsaml_jax.runs.listener_files import (
    LISTENERS_FILE,
    read_listeners,
    read_person,
    write_listeners,
)
from dsaml_jax.runs.listeners import Listeners, Person, Told
from dsaml_jax.runs.loading import at_strength, load_model, require_free, save_model, weights_digest
from dsaml_jax.runs.log import (
    METRICS_FILE,
    REPORT_FILE,
    RUN_FILE,
    RunLog,
    RunStatus,
    State,
    only_here,
    read_metrics,
    read_status,
)
from dsaml_jax.runs.spread import BAND_SHARE, Correlations, Spread, Together
from dsaml_jax.runs.store import CHECKPOINTS, CheckpointStore, DamagedCheckpoint
from dsaml_jax.runs.variables import (
    LoadedModel,
    initial_variables,
    require_variables,
    variables_like,
)

__all__ = [
    "BAND_SHARE",
    "CHECKPOINTS",
    "METRICS_FILE",
    "REPORT_FILE",
    "Person",
    "RUN_FILE",
    "CheckpointStore",
    "Correlations",
    "DamagedCheckpoint",
    "LISTENERS_FILE",
    "Listeners",
    "LoadedModel",
    "RunInfo",
    "RunLog",
    "RunStatus",
    "Spread",
    "State",
    "Together",
    "Told",
    "at_strength",
    "export_model",
    "initial_variables",
    "load_model",
    "only_here",
    "read_listeners",
    "read_metrics",
    "read_person",
    "read_run_info",
    "read_status",
    "require_free",
    "require_variables",
    "save_model",
    "variables_like",
    "weights_digest",
    "write_listeners",
    "write_run_info",
]
