"""What a task is: an annotator, a random mixture, or nothing."""

from dsaml_jax.experiment import Experiment, Method
from experiments.pdmer import ALL_THE_WAY, TRAININGS


def experiment() -> Experiment:
    """Annotator tasks against random tasks and against training on the mean alone.

    Claim: only with annotators as tasks does meta-training learn what adapting to a listener needs.
    Command: `dsaml experiment tasks --dataset synthetic --seeds 2 --out experiments_out`
    Result (2 seeds): not so here. Meta-training beats the mean alone (CCC +0.005, RMSE -0.006 after adapting), but random tasks do as
      well as annotators (CCC +0.0017 better, RMSE 0.0006 better): where only offsets adapt, by steps of a fixed size, there is nothing about
      adapting to learn, and what is learned is a better model for everybody.
    Time: 2 minutes, once `pdmer` has trained the models.
    """
    return Experiment(
        title="Annotator tasks",
        claim="The same meta-training with one annotator per task, with tasks that mix annotators, and none at all; "
        "all adapted in the same way.",
        task="pdmer",
        trainings=TRAININGS,
        methods={
            "mean only": Method("unadapted", "DMER"),
            "mean only, adapted": Method("adapted", "DMER", ALL_THE_WAY),
            "random tasks": Method("unadapted", "MAML, random tasks"),
            "random tasks, adapted": Method("adapted", "MAML, random tasks", ALL_THE_WAY),
            "annotator tasks": Method("unadapted", "MAML"),
            "annotator tasks, adapted": Method("adapted", "MAML", ALL_THE_WAY),
        },
        against="annotator tasks, adapted",
        figures=("learning", "spread"),
    )
