"""TaylorSeer: between full calls, layers within the blocks are forecast by a Taylor series.

https://arxiv.org/abs/2503.06923, with the warm-up of diffusers' release. Order 0 holds, which is FORA
(https://arxiv.org/abs/2407.01425).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from baselines.plan import Plan, PlanContext
from dipgo import Schedule, ruled
from dipgo.errors import DipgoError
from dipgo.rules import Taylor

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
