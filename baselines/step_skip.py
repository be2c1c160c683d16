"""Skipping whole steps, uniformly: the paper's "Skip - Interval=k", in both its readings, and our control."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from baselines.context import Plan, PlanContext
from dipgo.errors import DipgoError, unknown

MODES = ("hold", "omit")


def plan(context: PlanContext) -> Plan:
    """Parameters: `mode` and either `interval` or, for "hold", `calls`.

    "hold" computes every `interval`-th call, or `calls` calls spread evenly, and holds the prediction in
    between while the scheduler steps on. "omit" leaves the other calls of the grid out altogether, without
    making the remaining steps longer.
    """
    mode = context.param("mode")
    if mode not in MODES:
        raise unknown("step_skip mode", mode, MODES)
    total = context.sampler.calls
    if "calls" in context.params:
        count = context.params["calls"]
        if mode == "omit" or not 1 <= count <= total:
            raise DipgoError(f"calls={count} needs mode 'hold' and must lie between 1 and {total}")
        return context.skipping(np.arange(count) * total // count)
    interval = context.param("interval")
    if not 1 <= interval <= total:
        raise DipgoError(f"interval is {interval}; it must lie between 1 and {total}")
    if mode == "hold":
        return context.skipping(range(0, total, interval))
    return replace(context, sampler=replace(context.sampler, stride=interval)).dense()
