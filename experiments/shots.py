"""What more than one annotated song is worth."""

from dsaml_jax.evaluation import OFFSETS, STRENGTHS
from dsaml_jax.experiment import Experiment, Method
from experiments.pdmer import ALL_THE_WAY, TRAININGS

SHOTS = (1, 2, 5, 10)
STEPS = (1, 4, 16, 64)


def experiment() -> Experiment:
    """Scores by support songs, adapting in several ways; among them inner steps, with a model that was trained for one song and three steps.

    Claim: none. The ceiling is the mean of a song's other raters, moved by a tuned share of what the person differed from it on their songs.
    Command: `dsaml experiment shots --data DATA --standard --seeds 2 --out OUT` for DEAM, `--dataset synthetic` in place of the data for
      simulated listeners.
    Result: see `experiments/README.md`.
    """
    methods = {
        "Meta-SGD unadapted": Method("unadapted", "Meta-SGD"),
        "DMER": Method("unadapted", "DMER"),
        "the other raters (no model)": Method("others"),
    }
    for shots in SHOTS:
        songs = f"{shots} song{'s' if shots > 1 else ''}"
        methods |= {
            f"Meta-SGD adapted, {songs}": Method("adapted", "Meta-SGD", choices=STRENGTHS, shots=shots),
            f"Meta-SGD + offset, {songs}": Method("offset", "Meta-SGD", choices=OFFSETS, shots=shots),
            f"DMER + offset, {songs}": Method("offset", "DMER", choices=OFFSETS, shots=shots),
            f"the other raters + offset (no model), {songs}": Method("others", choices=OFFSETS, shots=shots),
        }  # fmt: skip
        for steps in STEPS:
            methods[f"Meta-SGD by {steps} step{'s' if steps > 1 else ''}, all the way, {songs}"] = (
                Method("adapted", "Meta-SGD", (*ALL_THE_WAY, f"meta.steps={steps}"), shots=shots)
            )
    return Experiment(
        title="Support songs",
        claim="Models moved by 1, 2, 5 or 10 songs; everyone is asked about the same other songs.",
        task="pdmer",
        trainings={name: TRAININGS[name] for name in ("DMER", "Meta-SGD")},
        methods=methods,
        against="Meta-SGD unadapted",
        figures=("shots",),
    )
