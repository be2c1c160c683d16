"""Algorithm 1 on random scores: what a pruned ratio costs, without a training and without a claim to quality."""

from __future__ import annotations

import numpy as np

from baselines.plan import Plan, PlanContext
from dipgo import select_schedule

TOLERANCE = 0.05  # of the ratio: few calls leave few ratios to choose from, and the one reached is what counts
SHARED = 2 / 3  # of a score, by all blocks of its call: a learned schedule leaves out most of its blocks in whole calls


def plan(context: PlanContext) -> Plan:
    """Parameters: `ratio`, the share of the MACs to prune, and optionally `seed` (1)."""
    random = np.random.default_rng(context.params.get("seed", 1))
    calls, sites = context.sampler.calls, len(context.graph.sites)
    scores = SHARED * random.random((calls, 1)) + (1 - SHARED) * random.random((calls, sites))
    schedule = select_schedule(scores, context.param("ratio"), context.costs, tolerance=TOLERANCE)
    return Plan(context.sampler, schedule, context.costs)
