"""The same shards, written by Apache Beam: on several machines, or processes of one.

Needs the extra `[beam]`. The folders of the corpus, of the weights and of the prepared data must be seen by
every worker under the same path.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_prep.analysis import embedder
from data_prep.base import DataError
from data_prep.examples import analyse_job
from data_prep.features import FeatureConfig
from data_prep.writing import Engine, Shard, write_shard


def beam_engine(runner: str, options: Sequence[str] = (), workers: int | None = None) -> Engine:
    """Maps :func:`~data_prep.writing.write_shard` over shards on a Beam runner.

    Args:
      runner: `DirectRunner`, `FlinkRunner`, `SparkRunner`, `DataflowRunner`, ...
      options: flags of the runner, as on Beam's own command line.
      workers: processes of the DirectRunner; None takes all cores. Other runners have flags for it.

    Raises:
      DataError: Beam is not installed.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise DataError("Apache Beam is not installed; pip install 'dsaml_jax[beam]'") from None
    flags = list(options)
    if runner == "DirectRunner":
        flags += _direct_runner_flags(workers)

    def run(shards: list[Shard], config: FeatureConfig, weights: Path | None) -> None:
        try:
            with beam.Pipeline(runner=runner, options=PipelineOptions(flags)) as pipeline:
                (
                    pipeline
                    | beam.Create(shards)
                    | beam.Reshuffle()
                    | beam.Map(_write_whole_shard, config, weights)
                )
        except Exception as error:  # whatever the runner and the workers raise
            last = (str(error).strip() or repr(error)).splitlines()[-1]
            raise DataError(f"Beam's {runner} failed: {last}") from error

    return run


def _direct_runner_flags(workers: int | None) -> list[str]:
    from data_prep.parallel import available_cores

    count = workers or available_cores()
    return [f"--direct_num_workers={count}", "--direct_running_mode=multi_processing"]


def _write_whole_shard(shard: Shard, config: FeatureConfig, weights: Path | None) -> None:
    analysed = (analyse_job((job, config)) for job in shard.jobs)
    write_shard(shard, config, embedder(config, weights), analysed)
