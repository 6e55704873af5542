"""How many songs, how many steps."""

from dsaml_jax.experiment import Experiment, Method
from experiments.pdmer import ALL_THE_WAY, TRAININGS

SHOTS = (1, 2, 5, 10)
STEPS = (0, 1, 2, 4, 8, 16, 32, 64)


def experiment() -> Experiment:
    """Scores by support songs and inner steps, with a model that was trained for one song and three steps.

    Claim: more annotated songs help; more steps than trained for help with many songs and hurt with one.
    Command: `dsaml experiment shots --dataset synthetic --seeds 3 --out experiments_out`
    Result (3 seeds): RMSE 0.319 before; at best 0.309 with one song (4 steps), 0.305 with two (8), 0.297 with five (16), 0.293 with
      ten (16 and more). With one song 16 steps are worse than none.
    Time: 5 minutes on two cores that did other work beside it, once `pdmer` has trained the models.
    """
    methods = {
        _name(shots, steps): Method(
            "adapted", "MAML", (*ALL_THE_WAY, f"meta.steps={steps}"), shots=shots
        )
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
