"""One-shot personalisation against every baseline."""

from dsaml_jax.experiment import Experiment, Method, Training

REFERENCE = (
    "meta.algorithm=fomaml", "meta.steps=16", "meta.learning_rate=5e-3", "meta.adapts=all",
    "meta.inner_loss=dsaml", "meta.batch_norm=batch", "training.schedule=constant",
)  # fmt: skip
"""How the published implementation adapts (`--preset reference`), on the model of this scale."""

RATES = {
    "predictor/out/bias": (0.017, 0.05, 0.08),
    "predictor/out": (0.003, 0.01, 0.03),
    "all": (0.003,),
}
FINE_TUNING = tuple(
    (f"meta.adapts={adapts}", f"meta.learning_rate={rate}")
    for adapts, rates in RATES.items()
    for rate in rates
)
"""What the validation part may choose from for the DMER model that is merely fine-tuned, by three steps."""

BOLDER = tuple((f"meta.learning_rate={rate}",) for rate in (0.017, 0.03, 0.05, 0.08))
"""The same for MAML: larger steps gain more in the mean, for fewer listeners."""

TRAININGS = {
    "DMER": Training("dmer"),
    "MAML": Training("pdmer", start="DMER"),
    "MAML, random tasks": Training("pdmer", ("meta.task_kind=random",), start="DMER"),
}
"""Shared with other experiments."""


def experiment() -> Experiment:
    """Predicts what a listener hears in songs they have not annotated, from one song they have.

    Claim: MAML, adapted, beats every baseline. The reference's way of adapting stays in the table.
    Command: `dsaml experiment pdmer --dataset synthetic --out experiments_out`
    """
    return Experiment(
        title="PDMER: one annotated song",
        claim="Meta-learned adaptation to one song of an unseen listener, against models that do not adapt, adapt "
        "otherwise, or were trained otherwise.",
        task="pdmer",
        trainings=TRAININGS | {"reference settings": Training("pdmer", REFERENCE, start="DMER")},
        methods={
            "constant": Method("constant"),
            "support mean": Method("support mean"),
            "DMER": Method("unadapted", "DMER"),
            "DMER + affine": Method("affine", "DMER"),
            "DMER fine-tuned": Method("adapted", "DMER", choices=FINE_TUNING),
            "reference settings, unadapted": Method("unadapted", "reference settings"),
            "reference settings, adapted": Method("adapted", "reference settings"),
            "random tasks, adapted": Method("adapted", "MAML, random tasks"),
            "MAML unadapted": Method("unadapted", "MAML"),
            "MAML adapted, bolder": Method("adapted", "MAML", choices=BOLDER),
            "MAML adapted": Method("adapted", "MAML"),
        },
        against="MAML unadapted",
        subject="MAML adapted",
        protocols=("clean", "reference"),
        figures=("listeners", "annotators", "attention", "learning", "spread"),
    )
