"""The paper's method: scores from a trained pruner, a schedule at the asked ratio by Algorithm 1."""

from __future__ import annotations

from baselines.context import Plan, PlanContext
from dipgo import select_schedule


def plan(context: PlanContext) -> Plan:
    """Parameters: `ratio` of the MACs to prune, and `train`, the pruner's training settings."""
    scores = context.train(context.params.get("train", {}))
    schedule = select_schedule(scores, context.param("ratio"), context.costs)
    return Plan(context.sampler, schedule, context.costs)
