"""Mean curves: the ablations of the paper, and baselines."""

from dsaml_jax.experiment import Experiment, Method, Training

ABLATIONS = {
    "without local attention": ("model.use_local=false",),
    "without global attention": ("model.use_global=false",),
    "without diagonal loss": ("model.diagonal_weight=0",),
    "without ImageBind adapter": ("model.use_adapter=false",),
    "BiLSTM without attention": ("model.use_local=false", "model.use_global=false"),
}

WHOLE = "whole model"
"""Learns the corpus's own mean curves, which `DMER` of the other experiments may not: people are held out there."""


def experiment() -> Experiment:
    """What listeners agree on, predicted with and without each part of the model.

    Claim: the whole model beats a constant and ridge regression on spectral statistics. On simulated music its ablations were no worse.
    Command: `dsaml experiment dmer --dataset synthetic --out experiments_out`
    Result: see `experiments/README.md`.
    Time: 40 minutes on two cores that did other work beside it (AMD EPYC); a model takes one to two.
    """
    trainings = {WHOLE: Training("dmer")}
    trainings |= {name: Training("dmer", settings) for name, settings in ABLATIONS.items()}
    rows = {"constant": Method("constant"), "ridge on spectral statistics": Method("ridge")}
    rows |= {name: Method("unadapted", name) for name in reversed(ABLATIONS)}
    return Experiment(
        title="DMER: mean curves",
        claim="The whole model against its ablations and two baselines, on unseen songs.",
        task="dmer",
        trainings=trainings,
        methods=rows | {"DMER": Method("unadapted", WHOLE)},
        against="DMER",
        figures=("learning", "attention", "spread"),
    )
