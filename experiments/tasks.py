"""What a task is: an annotator, a random mixture, or nothing."""

from dsaml_jax.evaluation import OFFSETS, STRENGTHS
from dsaml_jax.experiment import Experiment, Method
from experiments.pdmer import TRAININGS


def experiment() -> Experiment:
    """Annotator tasks against random tasks and against training on the mean alone.

    Claim: none. What annotators as tasks teach is how far to move; whether more than a tuned share of the support error, the rows with
      an offset say.
    Command: `dsaml experiment tasks --dataset synthetic --seeds 3 --out experiments_out`
    Result: rows of `pdmer` on DEAM say that annotators as tasks teach no more than random tasks; see `experiments/README.md`.
    Time: a minute, once `pdmer` has trained the models.
    """
    return Experiment(
        title="Annotator tasks",
        claim="The same meta-training with one annotator per task, with tasks that mix annotators, and none at all; "
        "all adapted in the same way.",
        task="pdmer",
        trainings=TRAININGS,
        methods={
            "mean only": Method("unadapted", "DMER"),
            "mean only, adapted": Method("adapted", "DMER", choices=STRENGTHS),
            "mean only + offset": Method("offset", "DMER", choices=OFFSETS),
            "random tasks": Method("unadapted", "Meta-SGD, random tasks"),
            "random tasks, adapted": Method("adapted", "Meta-SGD, random tasks", choices=STRENGTHS),
            "random tasks + offset": Method("offset", "Meta-SGD, random tasks", choices=OFFSETS),
            "annotator tasks": Method("unadapted", "Meta-SGD"),
            "annotator tasks + offset": Method("offset", "Meta-SGD", choices=OFFSETS),
            "annotator tasks, adapted": Method("adapted", "Meta-SGD", choices=STRENGTHS),
        },
        against="annotator tasks, adapted",
        figures=("learning", "spread"),
    )
