"""Skipping whole steps, uniformly: the paper's "Skip - Interval=k", in both its readings, and our controls."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from baselines.plan import Plan, PlanContext
from dipgo.errors import DipgoError, unknown

MODES = ("hold", "forecast", "omit")
EXAMPLES = (
    {"mode": "hold", "interval": 2},
    {"mode": "hold", "calls": 3},
    {"mode": "forecast", "calls": 3, "order": 1},
    {"mode": "omit", "interval": 2},
)


@dataclass(frozen=True)
class Params:
    """The parameters of `plan`. A run gives either `interval` or, unless its mode is "omit", `calls`."""

    mode: str
    """"hold" repeats the last output between the computed calls while the scheduler steps on, "forecast" extrapolates
    it, and "omit" leaves the other calls of the grid out without making the remaining steps longer."""
    interval: int | None = None
    """Every so many calls one is computed, the first one among them."""
    calls: int | None = None
    """How many calls are computed, spread evenly."""
    order: int | None = None
    """The degree of the polynomial of "forecast", 1 or 2."""


def plan(context: PlanContext, params: Params) -> Plan:
    """Compute evenly spread calls and skip the others."""
    mode, total = params.mode, context.sampler.calls
    if mode not in MODES:
        raise unknown("step_skip mode", mode, MODES)
    if (params.order is None) == (mode == "forecast"):
        raise DipgoError("step_skip takes 'order', 1 or 2, with the mode 'forecast', and only with that")
    if (params.calls is None) == (params.interval is None):
        raise DipgoError("step_skip takes either 'calls' or 'interval'; give one of them")
    if params.calls is not None:
        if mode == "omit":
            raise DipgoError("step_skip mode 'omit' takes an interval, not calls")
        return context.skipping(spread(params.calls, total), params.order or 0)
    if not 1 <= params.interval <= total:
        raise DipgoError(f"interval is {params.interval}; it must lie between 1 and {total}")
    if mode == "omit":
        return replace(context, sampler=replace(context.sampler, stride=params.interval)).dense()
    return context.skipping(range(0, total, params.interval), params.order or 0)


def spread(calls: int, total: int) -> list[int]:
    """Return `calls` of all calls, as evenly spread as they go, the first one among them."""
    if not 1 <= calls <= total:
        raise DipgoError(f"calls={calls}; it must lie between 1 and {total}")
    return (np.arange(calls) * total // calls).tolist()
