"""What `model.activations=bfloat16` does to the loss, the meta-gradients and a short training run.

Claim: the loss moves by less than 0.005, and the meta-gradient of either order keeps its direction: cosine above 0.98,
also in the front end. 50 steps of training end at a loss that differs by less than seeds do. (Rounding nothing but the
parameters and inputs of float32 moves the gradient a sixth to a half as far: part of it is the loss, not the sums.)
Command: `python experiments/precision.py --out /tmp/precision`.
Sizes: patches 51 x 128, 60 steps, 3 layers. Inputs are drawn like log-mel patches and slow curves. CCC and PCC do not
see the scale of a curve, so their gradient at an untrained model depends on the draw: hence several.
Result: `results/precision.md`; about 15 minutes on two CPU cores, which only emulate bfloat16: its speed is not measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_prep.deam import read_deam
from data_prep.features import TINY
from data_prep.prepare import prepare
from data_prep.shards import read_corpus
from data_prep.synthetic import write_corpus
from dsaml_jax import DSAML, ModelConfig, losses, meta
from dsaml_jax.base import PyTree
from dsaml_jax.config import preset, with_settings
from dsaml_jax.reporting import environment
from dsaml_jax.runs import read_metrics
from dsaml_jax.training import train

RESULTS = Path(__file__).parent / "results"
MODULES = ("spectrogram", "adapter", "encoder", "predictor")
ORDERS = {"fomaml": "first", "maml": "second"}
TRAINING = ("training.task=dmer", "training.steps=50", "training.validate_every=50")


@dataclasses.dataclass(frozen=True)
class Size:
    """A measurement: width and heads of the model, and how much of everything."""

    width: int
    heads: int
    tasks: int
    query: int
    steps: int
    draws: int


SIZES = (
    Size(width=64, heads=4, tasks=4, query=2, steps=4, draws=3),
    Size(width=1024, heads=16, tasks=1, query=1, steps=2, draws=1),
)


def draw(seed: int, size: Size) -> tuple[np.ndarray, ...]:
    """Log-mel patches, embedding, arousal, valence, with a task and a window axis in front."""
    random = np.random.RandomState(seed)
    lead = (size.tasks, 1 + size.query)
    mel = 2.0 * random.standard_normal((*lead, 60, 51, 128)) - 4.0
    mel += 1.5 * random.standard_normal((*lead, 60, 1, 1))
    embedding = random.standard_normal((*lead, 1, size.width))

    def curve() -> np.ndarray:
        walk = np.cumsum(0.08 * random.standard_normal((*lead, 60)), axis=-1)
        return np.clip(0.3 * random.standard_normal((*lead, 1)) + walk, -1.0, 1.0)

    return tuple(x.astype(np.float32) for x in (mel, embedding, curve(), curve()))


def meta_gradient(
    name: str, config: ModelConfig, steps: int, variables: PyTree, data: PyTree
) -> tuple[jax.Array, PyTree]:
    """Value and gradient of adapting all parameters at 0.005, BatchNorm by the batch."""

    def loss(params: PyTree, batch: PyTree) -> jax.Array:
        mel, embedding, arousal, valence = batch
        out: Any = DSAML(config).apply(
            variables | {"params": params}, mel, embedding, batch_norm=True
        )
        return losses.dsaml_loss(out, arousal, valence, config=config)[0]

    support, query = (
        jax.tree.map(lambda x: x[:, :1], data),
        jax.tree.map(lambda x: x[:, 1:], data),
    )
    algorithm = meta.algorithm(name, steps=steps, learning_rate=5e-3)
    return meta.meta_gradient(loss, variables["params"], support, query, algorithm=algorithm)


def rounded(tree: PyTree) -> PyTree:
    """To bfloat16 and back."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16).astype(jnp.float32), tree)


def compare(actual: PyTree, exact: PyTree) -> list[float]:
    """Relative L2 distance and cosine."""
    a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (actual, exact))
    norm = np.linalg.norm(b)
    return [float(np.linalg.norm(a - b) / norm), float(a @ b / np.linalg.norm(a) / norm)]


def differences(size: Size, name: str) -> dict[str, dict[str, np.ndarray]]:
    """What is changed -> (`loss` `[draws]`, `all` and the modules `[draws, 2]`)."""
    full = ModelConfig(
        width=size.width, num_heads=size.heads, ffn_width=2 * size.width, dropout=0.0
    )
    half = dataclasses.replace(full, activations="bfloat16")
    run = jax.jit(meta_gradient, static_argnums=(0, 1, 2))
    rows: dict[str, dict[str, list[Any]]] = {
        "bfloat16 activations": {}, "float32, parameters and inputs rounded": {},
    }  # fmt: skip
    for seed in range(size.draws):
        data = draw(seed, size)
        variables = DSAML(full).init(jax.random.key(seed), data[0][0, :1], data[1][0, :1])
        value, exact = run(name, full, size.steps, variables, data)
        near = run(name, half, size.steps, variables, data)
        perturbed = (rounded(variables), (*rounded(data[:2]), *data[2:]))
        for row, (loss, gradient) in zip(
            rows.values(), (near, run(name, full, size.steps, *perturbed)), strict=True
        ):
            row.setdefault("loss", []).append(abs(float(loss - value)))
            row.setdefault("all", []).append(compare(gradient, exact))
            for module in MODULES:
                row.setdefault(module, []).append(compare(gradient[module], exact[module]))
    return {
        title: {name: np.array(values) for name, values in row.items()}
        for title, row in rows.items()
    }


def gradient_table(results: dict[tuple[Size, str], dict[str, dict[str, np.ndarray]]]) -> list[str]:
    """Median over draws, and the worst draw of the whole gradient."""
    columns = ("loss", "all", "all, worst draw", *MODULES)
    lines = [
        "| width | order | changed | " + " | ".join(columns) + " |",
        "|---" * (3 + len(columns)) + "|",
    ]
    for (size, name), rows in results.items():
        for title, row in rows.items():
            cells = [f"{np.median(row['loss']):.5f}"]
            pairs = [
                np.median(row["all"], axis=0),
                (row["all"][:, 0].max(), row["all"][:, 1].min()),
            ]
            pairs += [np.median(row[module], axis=0) for module in MODULES]
            cells += [f"{distance:.3f}, {cosine:.4f}" for distance, cosine in pairs]
            lines.append(f"| {size.width} | {ORDERS[name]} | {title} | " + " | ".join(cells) + " |")
    return lines


def training_losses(out: Path, seeds: int) -> np.ndarray:
    """`[seeds, 2]` training loss of the last 10 steps with float32 and bfloat16."""
    root = write_corpus(out / "corpus", songs=60, annotators=30)
    corpus = read_corpus(prepare(read_deam(root, name="synthetic"), out / "data", TINY))
    rows = np.zeros((seeds, 2))
    for seed, (i, activations) in itertools.product(
        range(seeds), enumerate(("float32", "bfloat16"))
    ):
        workdir = out / f"{activations}-{seed}"
        more = (f"model.activations={activations}", f"training.seed={seed}")
        train(with_settings(preset("tiny"), [*TRAINING, *more]), corpus, workdir)
        lines = [line for line in read_metrics(workdir) if line["kind"] == "train"]
        rows[seed, i] = np.mean([line["total_loss"] for line in lines if line["step"] > 40])
    return rows


def markdown(gradients: list[str], trained: np.ndarray) -> str:
    """Both tables, what they were measured on."""
    lines = [
        "# bfloat16 activations",
        "",
        "Command: `python experiments/precision.py --out /tmp/precision`. Two CPU cores that emulate bfloat16: this is about numbers, not speed.",
        "",
        "## Meta-gradients",
        "",
        "Against float32: absolute change of the loss; relative L2 distance and cosine of the gradient. Median over draws",
        "of model and data. Second order is in the memory mode `mixed`.",
        "",
        *(
            f"- width {size.width}: draws {size.draws}, tasks {size.tasks}, support songs 1, query songs {size.query}, "
            f"inner steps {size.steps}"
            for size in SIZES
        ),
        "",
        *gradients,
        "",
        "## Training",
        "",
        "Preset tiny, DMER, embedded corpus of 60 songs: mean loss of steps 41 to 50.",
        "",
        "| seed | float32 | bfloat16 | difference |",
        "|---|---|---|---|",
        *(
            f"| {seed} | {full:.4f} | {half:.4f} | {half - full:+.4f} |"
            for seed, (full, half) in enumerate(trained)
        ),
        f"| sd over seeds | {trained[:, 0].std(ddof=1):.4f} | {trained[:, 1].std(ddof=1):.4f} "
        f"| {(trained[:, 1] - trained[:, 0]).std(ddof=1):.4f} |",
        "",
        *(f"- {name}: {value}" for name, value in environment().items()),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, trains what is missing, and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    jax.config.update("jax_compilation_cache_dir", str(options.out / "compiled"))
    trained = training_losses(options.out, options.seeds)
    results = {(size, name): differences(size, name) for size in SIZES for name in ORDERS}
    text = markdown(gradient_table(results), trained)
    (RESULTS / "precision.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
