"""What more than one annotated song is worth."""

from dsaml_jax.evaluation import OFFSETS
from dsaml_jax.experiment import Experiment, Method, Training
from experiments.dmer import LEVELS

SHOTS = (1, 2, 5, 10)

MODEL = "with levels"


def experiment() -> Experiment:
    """Scores by support songs, adapting in closed form and by a tuned share of the mean error.

    Claim: what a model knows of how listeners differ (from validation songs) gains at least 80 % of what the best share of the mean
      error would, if somebody knew it, and is never worse than not adapting, in the mean.
    Command: `dsaml experiment shots --data DATA --standard --folds 5 --seeds 1 --out OUT --set training.steps=200 --set
      training.validate_every=50` for DEAM, `--dataset synthetic` in place of the data for simulated listeners.
    Result: see `experiments/README.md`.
    """
    methods = {
        "constant": Method("constant"),
        "DMER": Method("unadapted", MODEL),
        "the other raters (no model)": Method("others"),
    }
    for shots in SHOTS:
        songs = f"{shots} song{'s' if shots > 1 else ''}"
        methods |= {
            f"DMER + prior, {songs}": Method("prior", MODEL, shots=shots),
            f"DMER + offset, {songs}": Method("offset", MODEL, choices=OFFSETS, shots=shots),
            f"DMER + the best offset (no model), {songs}": Method("best offset", MODEL, shots=shots),
            f"the other raters + offset (no model), {songs}": Method("others", choices=OFFSETS, shots=shots),
        }  # fmt: skip
    return Experiment(
        title="Support songs",
        claim="Models moved by 1, 2, 5 or 10 songs; everyone is asked about the same other songs.",
        task="pdmer",
        trainings={MODEL: Training("dmer", LEVELS)},
        methods=methods,
        against="DMER",
        figures=("shots",),
    )
