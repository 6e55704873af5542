"""A step whose loss or gradient is not finite: whose data it was, and a file that replays it."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from data_prep.base import replacing
from data_prep.plain import parse_json
from data_prep.shards import Corpus
from dsaml_jax.adaptation import inner_algorithm, query_loss, support_loss, to_learned
from dsaml_jax.base import SongBatch
from dsaml_jax.config import RunConfig, from_json, to_json
from dsaml_jax.corpus import DeviceCorpus, Drawn, TaskArrays, WindowArrays, gather_windows
from dsaml_jax.errors import UsageError
from dsaml_jax.models import build_model
from dsaml_jax.training.steps import added_terms

FAILURES_FOLDER = "failures"
_BATCH_FIELDS = tuple(field.name for field in dataclasses.fields(SongBatch))


@dataclasses.dataclass(frozen=True)
class Replay:
    """What became of one task of a step (of a step of DMER, which is one).

    Attributes:
      loss: on the query.
      gradient_norms: of the gradient, by module of the model.
      adapted_finite: whether the parameters after the inner steps are finite.
      song_losses: `[Q]` of each query song by itself.
      inputs_finite: `[S + Q]` whether the features of each song are, support first.
    """

    loss: float
    gradient_norms: dict[str, float]
    adapted_finite: bool
    song_losses: np.ndarray
    inputs_finite: np.ndarray

    @property
    def is_finite(self) -> bool:
        """Whether nothing went wrong."""
        return bool(np.isfinite([self.loss, *self.gradient_norms.values()]).all())


@dataclasses.dataclass(frozen=True)
class Bundle:
    """Everything a task of a step depends on.

    Attributes:
      config: of the run.
      step: of the run.
      what: one line: the task, its annotator and songs.
      variables: before the step.
      support: None for DMER.
      query: the batch of DMER.
      songs: `S + Q` names of its songs, support first; empty for padding.
      keys: `[2, ...]` key data of dropout, for support and query.
    """

    config: RunConfig
    step: int
    what: str
    variables: dict[str, Any]
    support: SongBatch | None
    query: SongBatch
    keys: np.ndarray
    songs: tuple[str, ...]


def replay(bundle: Bundle) -> Replay:
    """Computes the task again, on this machine."""
    found = jax.device_get(_replay(*_arguments(bundle)))
    norms = {name: float(value) for name, value in sorted(found.pop("norms").items())}
    batches = [batch for batch in (bundle.support, bundle.query) if batch is not None]
    return Replay(
        loss=float(found["loss"]),
        gradient_norms=norms,
        adapted_finite=bool(found["adapted_finite"]),
        song_losses=found["song_losses"],
        inputs_finite=np.concatenate([_finite_inputs(batch) for batch in batches]),
    )


def _arguments(bundle: Bundle) -> tuple[Any, ...]:
    """Of :func:`_replay`."""
    keys, step = jnp.asarray(bundle.keys), np.int32(bundle.step)
    return bundle.config, bundle.variables, bundle.support, bundle.query, keys, step


def _finite_inputs(batch: SongBatch) -> np.ndarray:
    """`[B]`. Labels that are not numbers are masked long before."""
    songs = len(batch.present)
    features = (np.asarray(x).reshape(songs, -1) for x in (batch.log_mel, batch.embedding))
    return np.asarray(np.logical_and(*(np.isfinite(x).all(axis=1) for x in features)))


@partial(jax.jit, static_argnums=0)
def _replay(
    config: RunConfig,
    variables: dict[str, Any],
    support: SongBatch | None,
    query: SongBatch,
    keys: jax.Array,
    step: jax.Array,
) -> dict[str, Any]:
    model, stats = build_model(config.model, trusted=config.model.class_), variables["batch_stats"]
    dropout = config.model.draws
    inner_key, outer_key = map(jax.random.wrap_key_data, keys)
    pair = (inner_key, outer_key) if dropout else (None, None)
    by_batch = support is None or config.meta.batch_norm == "batch"
    outer = query_loss(model, stats, batch_norm=by_batch, **added_terms(config))

    if support is None:
        learned = adapted = variables["params"]
        loss, gradient = jax.value_and_grad(lambda p: outer(p, query, pair[1])[0])(learned)
    else:
        algorithm = inner_algorithm(config.meta)
        inner = support_loss(model, config.meta, stats)
        learned = to_learned(config.meta, variables)
        adapted = algorithm.adapt(inner, learned, support, pair[0])
        loss, gradient = jax.value_and_grad(
            lambda learned: algorithm.task_loss(inner, outer, learned, support, query, pair, step)[
                0
            ]
        )(learned)

    def of_one(song: SongBatch) -> jax.Array:
        return outer(adapted, jax.tree.map(lambda x: x[None], song), pair[1])[0]

    # Rates that are learned stand beside the model's own modules.
    modules = (
        gradient if isinstance(gradient, dict) else {**gradient.params, "rates": gradient.rates}
    )
    return {
        "loss": loss,
        "norms": {name: optax.tree.norm(tree) for name, tree in modules.items()},
        "adapted_finite": jnp.isfinite(optax.tree.norm(adapted)),
        "song_losses": jax.vmap(of_one)(query),
    }


# ---- Whose fault.


def bundles_of_step(
    config: RunConfig,
    corpus: Corpus,
    here: DeviceCorpus,
    drawn: Drawn,
    names: Drawn,
    variables: dict[str, Any],
    step: int,
    key: jax.Array,
) -> list[Bundle]:
    """The tasks of a step, each by itself; one for DMER.

    Args:
      config: of the run.
      corpus: for names of songs and people.
      here: what `drawn` indexes.
      drawn: indices of the step.
      names: the same as indices into `corpus`; the two differ where features are streamed.
      variables: before the step.
      step: of the run.
      key: of the step.
    """
    if isinstance(drawn, WindowArrays):
        assert isinstance(names, WindowArrays)
        batch = jax.device_get(gather_windows(here, drawn.song, drawn.window))
        songs = tuple(corpus.song_ids[i] for i in names.song)
        keys = np.stack([jax.random.key_data(key)] * 2)
        what = f"songs {', '.join(songs)}"
        return [Bundle(config, step, what, variables, None, batch, keys, songs)]
    assert isinstance(names, TaskArrays)
    pairs = np.asarray(jax.random.key_data(jax.random.split(key, (len(drawn.support), 2))))
    bundles = []
    for task, keys in enumerate(pairs):
        support, query = (
            jax.device_get(
                gather_windows(
                    here, *(getattr(drawn, kind + name)[task] for name in ("_song", "_window", ""))
                )
            )
            for kind in ("support", "query")
        )
        ratings = np.concatenate([names.support[task], names.query[task]])
        songs = tuple(corpus.song_ids[corpus.rating_song[x]] if x >= 0 else "" for x in ratings)
        people = {corpus.annotator_ids[corpus.rating_annotator[x]] for x in ratings if x >= 0}
        adapting, judged = (
            ", ".join(filter(None, part))
            for part in (songs[: len(names.support[task])], songs[len(names.support[task]) :])
        )
        what = (
            f"task {task}, annotator {', '.join(sorted(people))}, adapting on song {adapting}, "
            f"judged on {judged}"
        )
        bundles.append(Bundle(config, step, what, variables, support, query, keys, songs))
    return bundles


def blame(bundles: list[Bundle]) -> tuple[str, Bundle]:
    """In words, the first task of a step that is not finite by itself, and its bundle."""
    for bundle in bundles:
        found = replay(bundle)
        if found.is_finite:
            continue
        alone = np.ones(len(bundle.songs), bool)
        alone[-len(found.song_losses) :] = np.isfinite(found.song_losses)
        reasons = []
        for fault, fine in (("the features", found.inputs_finite), ("the loss", alone)):
            guilty = [
                song for song, good in zip(bundle.songs, fine, strict=True) if song and not good
            ]
            if guilty:
                reasons.append(f"{fault} of song {', '.join(guilty)} by itself is not finite")
                break
        if not found.adapted_finite:
            reasons.append("adapting diverges")
        norms = ", ".join(f"{name} {norm:g}" for name, norm in found.gradient_norms.items())
        return "; ".join([bundle.what, f"loss {found.loss:g}, gradient {norms}", *reasons]), bundle
    return (
        "each of its tasks is finite by itself, computed again on this machine: the sum was not",
        bundles[0],
    )


# ---- The file.


def write_bundle(path: Path, bundle: Bundle) -> None:
    """Writes a bundle as safetensors: numbers and JSON, no code."""
    from safetensors.numpy import save_file

    arrays = {
        f"variables/{name}": np.asarray(value)
        for name, value in traverse_util.flatten_dict(bundle.variables, sep=_SEPARATOR).items()
    }
    for kind in ("support", "query"):
        batch = getattr(bundle, kind)
        if batch is not None:
            arrays |= {f"{kind}/{name}": np.asarray(getattr(batch, name)) for name in _BATCH_FIELDS}
    arrays["keys"] = np.asarray(bundle.keys)
    metadata = {
        "config": json.dumps(to_json(bundle.config)),
        "step": str(bundle.step),
        "what": bundle.what,
        "songs": json.dumps(bundle.songs),
    }
    with replacing(path) as temporary:
        save_file(
            {name: np.ascontiguousarray(value) for name, value in arrays.items()},
            temporary,
            metadata,
        )


_SEPARATOR = "\t"
"""Between the levels of a tree; names of rates hold slashes."""


def read_bundle(path: Path) -> Bundle:
    """Reads what :func:`write_bundle` wrote.

    Raises:
      UsageError: it is no such file.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
        groups: dict[str, dict[str, np.ndarray]] = {"variables": {}, "support": {}, "query": {}}
        for name, value in arrays.items():
            kind, _, rest = name.partition("/")
            if kind in groups:
                groups[kind][rest] = value
        bundle = Bundle(
            config=from_json(parse_json(metadata["config"]), str(path)),
            step=int(metadata["step"]),
            what=metadata["what"],
            variables=traverse_util.unflatten_dict(groups["variables"], sep=_SEPARATOR),
            support=_song_batch(groups["support"]) if groups["support"] else None,
            query=_song_batch(groups["query"]),
            keys=arrays["keys"],
            songs=tuple(map(str, parse_json(metadata["songs"]))),
        )
    except (
        SafetensorError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        OverflowError,
    ) as error:
        raise UsageError(f"{path}: not a bundle of a failed step ({_reason(error)})") from None
    build_model(bundle.config.model)  # refuses a network that the user has not named
    try:
        jax.eval_shape(partial(_replay, bundle.config), *_arguments(bundle)[1:])
    except UsageError:
        raise
    except (
        Exception
    ) as error:  # JAX, Flax and chex each have their own kinds for shapes that do not fit
        raise UsageError(
            f"{path}: its numbers are not those of the model that its configuration describes "
            f"({_reason(error)})"
        ) from None
    return bundle


def _song_batch(arrays: dict[str, np.ndarray]) -> SongBatch:
    """In older files one mask stands for arousal and valence."""
    labelled = arrays["labelled"]
    if labelled.ndim == arrays["present"].ndim:
        labelled = np.stack([labelled] * 2, axis=-1)
    return SongBatch(**(arrays | {"labelled": labelled}))


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def replay_lines(bundle: Bundle, found: Replay) -> list[str]:
    """What a replay tells, in lines."""
    lines = [f"step {bundle.step}: {bundle.what}", f"loss: {found.loss:g}"]
    lines += [f"gradient norm of {name}: {norm:g}" for name, norm in found.gradient_norms.items()]
    lines.append(f"parameters after adapting: {'finite' if found.adapted_finite else 'not finite'}")
    lines.append("query songs, each by itself: " + " ".join(f"{x:g}" for x in found.song_losses))
    count = int((~found.inputs_finite).sum())
    lines.append(f"songs whose features are not finite: {count}")
    return lines
