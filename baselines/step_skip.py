"""Skipping whole steps, uniformly: the paper's "Skip - Interval=k", in both its readings, and our controls."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from baselines.plan import Plan, PlanContext
from dipgo.errors import DipgoError, unknown

MODES = ("hold", "forecast", "omit")


def plan(context: PlanContext) -> Plan:
    """Parameters: `mode` and either `interval` or, but for "omit", `calls`; for "forecast" also `order`, 1 or 2.

    "hold" computes every `interval`-th call, or `calls` calls spread evenly, and holds the prediction in
    between while the scheduler steps on; "forecast" extrapolates it from the last ones. "omit" leaves the other
    calls of the grid out altogether, without making the remaining steps longer.
    """
    mode = context.param("mode")
    if mode not in MODES:
        raise unknown("step_skip mode", mode, MODES)
    total = context.sampler.calls
    order = context.param("order") if mode == "forecast" else 0
    if "calls" in context.params:
        if mode == "omit":
            raise DipgoError("step_skip mode 'omit' takes an interval, not calls")
        return context.skipping(spread(context.params["calls"], total), order)
    interval = context.param("interval")
    if not 1 <= interval <= total:
        raise DipgoError(f"interval is {interval}; it must lie between 1 and {total}")
    if mode == "omit":
        return replace(context, sampler=replace(context.sampler, stride=interval)).dense()
    return context.skipping(range(0, total, interval), order)


def spread(calls: int, total: int) -> list[int]:
    """So many of all calls, as evenly as they go, the first one among them."""
    if not 1 <= calls <= total:
        raise DipgoError(f"calls={calls}; it must lie between 1 and {total}")
    return (np.arange(calls) * total // calls).tolist()
