"""First-order MAML: Finn, Abbeel, Levine 2017 (arXiv 1703.03400), section 5.2."""

from __future__ import annotations

import dataclasses

from dsaml_jax.meta.descent import GradientDescent


@dataclasses.dataclass(frozen=True, kw_only=True)
class FOMAML(GradientDescent):
    """Inner gradients count as constants: the meta-gradient is the query's at the adapted parameters.

    So whatever reaches the inner loss alone (a parameter that only it reads, a temperature, what made the support) has a zero
    meta-gradient. Weight decay in the inner steps counts as a constant too: it moves the adapted parameters, and the derivative
    stays the identity, where second order has a factor `1 - rate * decay` for each step. A rate does get its gradient.
    """

    order: int = dataclasses.field(default=1, init=False)
    first_order_steps: int = dataclasses.field(default=0, init=False)
