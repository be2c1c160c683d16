"""Ours beyond the paper: which calls to compute, and how to combine them into the others, learned together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from baselines.plan import Plan, PlanContext
from dipgo.errors import DipgoError


def plan(context: PlanContext) -> Plan:
    """Parameters: `calls` to compute, and `learn`, the settings of `dipgo.LearnConfig` and of what it learns from."""
    start = context.skipping(reaching(context.param("calls"), context.sampler.calls))
    return replace(start, schedule=context.learn(start, context.params.get("learn", {})))


def reaching(calls: int, total: int) -> list[int]:
    """So many of all calls, evenly from the first one on, but for the last gap, which is half as long: nothing mends
    what goes wrong in it."""
    if not 1 <= calls <= total:
        raise DipgoError(f"calls={calls}; it must lie between 1 and {total}")
    last = min(total - 1, total - total / (2 * calls))
    return np.linspace(0, last, calls).round().astype(int).tolist()
