"""Mean curves: the ablations of the paper, and baselines."""

from dsaml_jax.experiment import Experiment, Method, Training

ABLATIONS = {
    "without local attention": ("model.use_local=false",),
    "without global attention": ("model.use_global=false",),
    "without diagonal loss": ("model.diagonal_weight=0",),
    "without ImageBind adapter": ("model.use_adapter=false",),
    "BiLSTM without attention": ("model.use_local=false", "model.use_global=false"),
}

REFERENCE = ("training.learning_rate=5e-5", "training.schedule=constant", "model.dropout=0.1")
"""How the published implementation trains (`--preset reference`), on the model of this scale; so slowly that it gets more steps."""

LEVELS = (
    "model.standardize=true", "model.level_centres=2048", "training.squared_error_weight=8", "training.batch_songs=64",
    "training.choose_by=rmse", "meta.algorithm=fomaml", "meta.steps=1", "meta.learning_rate=0.5", "meta.strength=0.3",
    "meta.adapts=level/bias",
)  # fmt: skip
"""What `--preset levels` has and `--preset tiny` has not."""

EMBEDDINGS = {"spectral": ("spectral",), "musicnn": ("musicnn",), "both": ("musicnn", "spectral")}

WHOLE = "whole model"
"""Learns the corpus's own mean curves, which `DMER` of the other experiments may not: people are held out there."""


def experiment() -> Experiment:
    """What listeners agree on, predicted with and without each part of the model.

    Claim: none. The published loss hardly sees levels, and regression on what the model is given explains more of them; a model
      with a head for levels should explain as much. On simulated music the ablations were no worse than the whole model.
    Command: `dsaml experiment dmer --data DATA --standard --folds 5 --seeds 1 --out OUT --set training.steps=400 --set
      training.validate_every=50` for DEAM with `--embedding musicnn-spectral`; `--dataset synthetic` in place of the data.
    Result: see `experiments/README.md`.
    Time: 85 minutes on two cores that did much other work beside it (AMD EPYC).
    """
    trainings = {WHOLE: Training("dmer")}
    trainings |= {name: Training("dmer", settings) for name, settings in ABLATIONS.items()}
    trainings["DMER, reference settings"] = Training("dmer", REFERENCE, share=4.0)
    trainings["with levels"] = Training("dmer", LEVELS)
    rows = {"constant": Method("constant")}
    for name, parts in EMBEDDINGS.items():
        rows[f"ridge on {name}"] = Method("ridge", features=parts)
        rows[f"support vectors on {name}"] = Method("svr", features=parts)
    rows |= {name: Method("unadapted", name) for name in reversed(ABLATIONS)}
    rows["reference settings"] = Method("unadapted", "DMER, reference settings")
    return Experiment(
        title="DMER: mean curves",
        claim="The whole model against its ablations and two baselines, on unseen songs.",
        task="dmer",
        trainings=trainings,
        methods=rows
        | {
            "DMER": Method("unadapted", WHOLE),
            "DMER with levels": Method("unadapted", "with levels"),
        },
        against="DMER",
        subjects=("DMER with levels",),
        figures=("learning", "attention", "spread"),
    )
