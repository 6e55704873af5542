"""How many songs, how many steps."""

from dsaml_jax.experiment import Experiment, Method
from experiments.pdmer import TRAININGS

SHOTS = (1, 2, 5, 10)
STEPS = (0, 1, 2, 4, 8, 16, 32, 64)


def experiment() -> Experiment:
    """Scores by support songs and inner steps, with a model that was trained for one song and three steps.

    Claim: more annotated songs help; more steps than trained for help with many songs and hurt with one.
    Command: `dsaml experiment shots --dataset synthetic --out experiments_out`
    """
    methods = {
        _name(shots, steps): Method("adapted", "MAML", (f"meta.steps={steps}",), shots=shots)
        for shots in SHOTS
        for steps in STEPS
    }
    return Experiment(
        title="Support songs and inner steps",
        claim="One model, adapted to 1, 2, 5 or 10 songs by 0 to 64 steps; everyone is asked about the same songs.",
        task="pdmer",
        trainings={name: TRAININGS[name] for name in ("DMER", "MAML")},
        methods=methods,
        against=_name(1, 0),
        figures=("shots",),
    )


def _name(shots: int, steps: int) -> str:
    return f"{shots} shot{'s' if shots > 1 else ''}, {steps} step{'' if steps == 1 else 's'}"
