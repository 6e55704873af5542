"""Order and algorithm of the meta-gradient."""

from dsaml_jax.experiment import Experiment, Method, Training

ALGORITHMS = {
    "FOMAML": ("meta.algorithm=fomaml",),
    "MAML, second order": ("meta.algorithm=maml",),
    "ANIL": ("meta.algorithm=anil",),
    "BOIL": ("meta.algorithm=boil", "meta.learning_rate=1e-3", "meta.strength=1"),
    "Reptile": ("meta.algorithm=reptile",),
    "Meta-SGD": ("meta.algorithm=meta-sgd",),
    "MAML++": ("meta.algorithm=maml++",),
    "iMAML": ("meta.algorithm=imaml",),
}
FEWER = ("meta.adapts=predictor", "meta.strength=1")
"""More than the last layer, so that second order has something to say; BOIL adapts what lies in front of it."""

FASTEST = "Reptile"


def experiment() -> Experiment:
    """Eight algorithms from the same DMER model, at equal steps and in equal time.

    Claim: none. Which is best at equal steps need not be so in equal time.
    Command: `dsaml experiment meta-gradients --dataset synthetic --out experiments_out`
    """
    trainings = {"DMER": Training("dmer")}
    for name, settings in ALGORITHMS.items():
        adapts = () if name == "BOIL" else FEWER
        trainings[name] = Training("pdmer", (*adapts, *settings), start="DMER", share=0.2)
    methods = {"DMER": Method("unadapted", "DMER")}
    methods |= {name: Method("adapted", name) for name in ALGORITHMS}
    for name in ALGORITHMS:
        if name != FASTEST:
            timed = f"{name}, time of {FASTEST}"
            trainings[timed] = Training(
                "pdmer", trainings[name].settings, start="DMER", as_long_as=(name, FASTEST)
            )
            methods[timed] = Method("adapted", timed)
    return Experiment(
        title="Meta-gradients",
        claim="Algorithms that adapt the predictor, from the same DMER model; with equal meta-steps, and with the "
        f"meta-steps that fit into the time of {FASTEST}.",
        task="pdmer",
        trainings=trainings,
        methods=methods,
        against="MAML, second order",
        figures=("learning", "time", "spread"),
    )
