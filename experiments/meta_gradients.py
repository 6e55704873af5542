"""Order and algorithm of the meta-gradient."""

from dsaml_jax.experiment import Experiment, Method, Training
from experiments.pdmer import ALL_THE_WAY

PREDICTOR, HEAD = ("meta.adapts=predictor",), ("meta.adapts=predictor/out",)
ALGORITHMS = {
    "FOMAML": (*PREDICTOR, "meta.algorithm=fomaml"),
    "MAML, second order": (*PREDICTOR, "meta.algorithm=maml"),
    "ANIL": (*HEAD, "meta.algorithm=anil"),
    "BOIL": (*HEAD, "meta.algorithm=boil", "meta.learning_rate=1e-3"),
    "Reptile": (*PREDICTOR, "meta.algorithm=reptile"),
    "Meta-SGD, predictor": (*PREDICTOR, "meta.algorithm=meta-sgd"),
    "MAML++": (*PREDICTOR, "meta.algorithm=maml++"),
    "iMAML": (*PREDICTOR, "meta.algorithm=imaml"),
}
"""More than the offsets of the last layer adapts, so that second order has something to say. ANIL adapts the head, BOIL what lies in
front of it."""

FASTEST = "Reptile"


def experiment() -> Experiment:
    """Eight algorithms from the same DMER model, at equal steps and in equal time.

    Claim: none. Which is best at equal steps need not be so in equal time.
    Command: `dsaml experiment meta-gradients --dataset synthetic --standard --seeds 1 --out OUT`
    Result: see `experiments/README.md`; second order is a little better than first, learned rates a little better than that.
    Time: half an hour on two cores (AMD EPYC) that did other work beside it.
    """
    trainings = {"DMER": Training("dmer")}
    for name, settings in ALGORITHMS.items():
        trainings[name] = Training("pdmer", (*settings, *ALL_THE_WAY), start="DMER", share=0.2)
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
