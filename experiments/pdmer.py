"""One-shot personalisation against every baseline."""

from dsaml_jax.evaluation import FINE_TUNING, OFFSETS, STRENGTHS
from dsaml_jax.experiment import Experiment, Method, Training

REFERENCE = (
    "meta.algorithm=fomaml", "meta.steps=16", "meta.learning_rate=5e-3", "meta.strength=1", "meta.adapts=all",
    "meta.inner_loss=dsaml", "meta.squared_error_weight=0", "meta.batch_norm=batch", "training.schedule=constant",
)  # fmt: skip
"""How the published implementation adapts (`--preset reference`), on the model of this scale."""

ALL_THE_WAY = ("meta.strength=1",)
"""Gains more in the mean, for fewer listeners."""

TRAININGS = {
    "DMER": Training("dmer"),
    "Meta-SGD": Training("pdmer", start="DMER"),
    "Meta-SGD, random tasks": Training("pdmer", ("meta.task_kind=random",), start="DMER"),
}
"""Shared with other experiments."""


def experiment() -> Experiment:
    """Predicts what a listener hears in songs they have not annotated, from one song they have.

    Claim: none. The strongest simple baseline is a model moved by a tuned share of its mean error on the support song; the ceiling
      is the mean of a song's other raters, moved likewise. The reference's way of adapting stays in the table.
    Command: `dsaml experiment pdmer --data DATA --standard --seeds 2 --out OUT --set training.steps=300 --set training.validate_every=50` for
      DEAM; `--dataset synthetic` in place of the data for simulated listeners.
    Result: see `experiments/README.md`.
    Time: an hour a seed on two cores that did other work beside it; half of it judging.
    """
    return Experiment(
        title="PDMER: one annotated song",
        claim="Meta-learned adaptation to one song of an unseen listener, against models that do not adapt, adapt "
        "otherwise, or were trained otherwise.",
        task="pdmer",
        trainings=TRAININGS
        | {
            "DMER, longer": Training("dmer", start="DMER", as_long_as=("DMER", "Meta-SGD")),
            "reference settings": Training("pdmer", REFERENCE, start="DMER", share=0.2),
        },
        methods={
            "constant": Method("constant"),
            "support mean": Method("support mean"),
            "DMER": Method("unadapted", "DMER"),
            "DMER + affine": Method("affine", "DMER"),
            "DMER + offset": Method("offset", "DMER", choices=OFFSETS),
            "DMER fine-tuned": Method("adapted", "DMER", choices=FINE_TUNING),
            "DMER, longer": Method("unadapted", "DMER, longer"),
            "DMER, longer + offset": Method("offset", "DMER, longer", choices=OFFSETS),
            "reference settings, unadapted": Method("unadapted", "reference settings"),
            "reference settings, adapted": Method("adapted", "reference settings"),
            "random tasks, adapted": Method("adapted", "Meta-SGD, random tasks", choices=STRENGTHS),
            "random tasks + offset": Method("offset", "Meta-SGD, random tasks", choices=OFFSETS),
            "Meta-SGD unadapted": Method("unadapted", "Meta-SGD"),
            "Meta-SGD + offset": Method("offset", "Meta-SGD", choices=OFFSETS),
            "Meta-SGD adapted, by the preset": Method("adapted", "Meta-SGD"),
            "Meta-SGD adapted, all the way": Method("adapted", "Meta-SGD", ALL_THE_WAY),
            "Meta-SGD adapted": Method("adapted", "Meta-SGD", choices=STRENGTHS),
            "the other raters (no model)": Method("others"),
            "the other raters + offset (no model)": Method("others", choices=OFFSETS),
        },
        against="Meta-SGD unadapted",
        subjects=("Meta-SGD adapted",),
        protocols=("clean", "reference"),
        figures=("listeners", "annotators", "attention", "learning", "spread"),
    )
