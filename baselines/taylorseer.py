"""TaylorSeer: between full calls, layers within the blocks are forecast by a Taylor series.

https://arxiv.org/abs/2503.06923, with the warm-up of diffusers' release. Order 0 holds, which is FORA
(https://arxiv.org/abs/2407.01425).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import factorial

import numpy as np

from baselines.plan import Plan, PlanContext
from dipgo import Schedule, ruled
from dipgo.errors import DipgoError

EXAMPLES = ({"interval": 3}, {"interval": 2, "order": 2, "warmup": 2}, {"interval": 2, "order": 0, "warmup": 1})


@dataclass(frozen=True)
class Params:
    """The parameters of `plan`."""

    interval: int
    """After the warm-up, one of so many calls is computed."""
    order: int = 1
    """The order of the Taylor series: 0, 1 or 2."""
    warmup: int = 3
    """How many calls are computed at first. The next one is forecast, and the interval counts from the one after."""


@dataclass(frozen=True)
class Taylor:
    """The Taylor series of a site's values in the number of calls since it was last computed.

    Its derivatives are backward differences, each divided by the gap between the last two computed calls. So a
    forecast is a combination of the last `order` + 1 values, or of fewer as long as fewer are known.
    """

    order: int

    def __call__(self, computed: np.ndarray) -> np.ndarray:
        coefficients = np.zeros((*computed.shape, self.order + 1))
        for site, row in enumerate(computed.T):
            last, known = 0, 0
            derivatives = np.zeros((self.order + 1,) * 2)  # each as a combination of the last values, newest first
            for call, runs in enumerate(row):
                if runs:
                    before = np.roll(derivatives, 1, axis=1)
                    derivatives = np.zeros_like(derivatives)
                    derivatives[0, 0] = 1
                    for j in range(min(self.order, known)):
                        derivatives[j + 1] = (derivatives[j] - before[j]) / (call - last)
                    last, known = call, known + 1
                else:
                    powers = [(call - last) ** j / factorial(j) for j in range(self.order + 1)]
                    coefficients[call, site] = powers @ derivatives
        return coefficients


def plan(context: PlanContext, params: Params) -> Plan:
    """Compute whole calls at the interval, and forecast the layers within the blocks elsewhere."""
    if params.order not in (0, 1, 2):
        raise DipgoError(f"TaylorSeer's order is {params.order}; it must be 0, 1 or 2")
    for name in ("interval", "warmup"):
        if getattr(params, name) < 1:
            raise DipgoError(f"TaylorSeer's {name} is {getattr(params, name)}; it must be at least 1")
    context = context.at_unit("layer")
    calls = np.arange(context.sampler.calls)
    computed = (calls < params.warmup) | ((calls - params.warmup - 1) % params.interval == 0)
    reuse = np.repeat(~computed[:, None], len(context.graph.sites), axis=1)
    schedule = Schedule(context.graph.sites, reuse)
    return Plan(context.sampler, ruled(Taylor(params.order), context.graph, schedule), context.costs)
