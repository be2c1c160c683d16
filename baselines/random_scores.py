"""Algorithm 1 on random scores: what a pruned ratio costs, without a training and without a claim to quality."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from baselines.plan import Plan, PlanContext
from dipgo import select_schedule
from dipgo.errors import DipgoError

TOLERANCE = 0.05  # of the ratio: few calls leave few ratios to choose from, and the one reached is what counts
SHARED = 2 / 3  # of a score, by all blocks of its call: a learned schedule leaves out most of its blocks in whole calls
EXAMPLES = ({"ratio": 0.5}, {"ratio": 0.4, "seed": 3})


@dataclass(frozen=True)
class Params:
    """The parameters of `plan`."""

    ratio: float
    """The share of the MACs to prune."""
    seed: int = 1


def plan(context: PlanContext, params: Params) -> Plan:
    """Follow the schedule that Algorithm 1 selects from random scores."""
    if params.seed < 0:
        raise DipgoError(f"seed is {params.seed}; it must be at least 0")
    random = np.random.default_rng(params.seed)
    calls, sites = context.sampler.calls, len(context.graph.sites)
    scores = SHARED * random.random((calls, 1)) + (1 - SHARED) * random.random((calls, sites))
    schedule = select_schedule(scores, params.ratio, context.costs, tolerance=TOLERANCE)
    return Plan(context.sampler, schedule, context.costs)
