"""What more than one annotated song is worth."""

from dsaml_jax.evaluation import OFFSETS, STRENGTHS
from dsaml_jax.experiment import Experiment, Method, Training
from experiments.dmer import LEVELS

SHOTS = (1, 2, 5, 10)

LEVELS_MODEL, META_MODEL = "with levels", "Meta-SGD with levels"

META = (
    "meta.algorithm=meta-sgd", "meta.steps=3", "meta.learning_rate=0.017", "meta.strength=0.4",
)  # fmt: skip
"""How `--preset tiny` adapts: the rates of three inner steps are learned."""


def experiment() -> Experiment:
    """Scores by support songs, adapting in closed form, by a tuned share of the mean error, and by inner steps.

    Claim: what a model knows of how listeners differ (from validation songs) gains at least 80 % of what the best share of the mean
      error would, if somebody knew it, and is never worse than not adapting, in the mean.
    Command: `dsaml experiment shots --data DATA --standard --folds 5 --seeds 1 --out OUT --set training.steps=300 --set
      training.validate_every=50` for DEAM, `--dataset synthetic` in place of the data for simulated listeners.
    Result: see `experiments/README.md`.
    """
    trainings = {
        LEVELS_MODEL: Training("dmer", LEVELS),
        META_MODEL: Training("pdmer", (*LEVELS, *META), start=LEVELS_MODEL),
    }
    methods = {
        "constant": Method("constant"),
        "DMER": Method("unadapted", LEVELS_MODEL),
        "the other raters (no model)": Method("others"),
    }
    for shots in SHOTS:
        songs = f"{shots} song{'s' if shots > 1 else ''}"
        methods |= {
            f"DMER + prior, {songs}": Method("prior", LEVELS_MODEL, shots=shots),
            f"DMER + offset, {songs}": Method("offset", LEVELS_MODEL, choices=OFFSETS, shots=shots),
            f"DMER + the best offset (no model), {songs}": Method("best offset", LEVELS_MODEL, shots=shots),
            f"Meta-SGD adapted, {songs}": Method("adapted", META_MODEL, choices=STRENGTHS, shots=shots),
            f"the other raters + offset (no model), {songs}": Method("others", choices=OFFSETS, shots=shots),
        }  # fmt: skip
    return Experiment(
        title="Support songs",
        claim="Models moved by 1, 2, 5 or 10 songs; everyone is asked about the same other songs.",
        task="pdmer",
        trainings=trainings,
        methods=methods,
        against="DMER",
        figures=("shots",),
    )
