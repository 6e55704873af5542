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
        "MAML unadapted": Method("unadapted", "MAML"),
        "DMER": Method("unadapted", "DMER"),
        "the other raters (no model)": Method("others"),
    }
    for shots in SHOTS:
        songs = f"{shots} song{'s' if shots > 1 else ''}"
        methods |= {
            f"MAML adapted, {songs}": Method("adapted", "MAML", choices=STRENGTHS, shots=shots),
            f"MAML + offset, {songs}": Method("offset", "MAML", choices=OFFSETS, shots=shots),
            f"DMER + offset, {songs}": Method("offset", "DMER", choices=OFFSETS, shots=shots),
            f"the other raters + offset (no model), {songs}": Method("others", choices=OFFSETS, shots=shots),
        }  # fmt: skip
        for steps in STEPS:
            methods[f"MAML by {steps} step{'s' if steps > 1 else ''}, all the way, {songs}"] = (
                Method("adapted", "MAML", (*ALL_THE_WAY, f"meta.steps={steps}"), shots=shots)
            )
    return Experiment(
        title="Support songs",
        claim="Models moved by 1, 2, 5 or 10 songs; everyone is asked about the same other songs.",
        task="pdmer",
        trainings={name: TRAININGS[name] for name in ("DMER", "MAML")},
        methods=methods,
        against="MAML unadapted",
        figures=("shots",),
    )
