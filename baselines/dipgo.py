"""The paper's method: scores from a trained pruner, a schedule at the asked ratio by Algorithm 1."""

from __future__ import annotations

from baselines.context import Plan, PlanContext
from dipgo import select_schedule


def plan(context: PlanContext) -> Plan:
    """Parameters: `ratio` of the MACs to prune, and `train`, the pruner's training settings.

    `train.unit` says what is reused: a block's "output" (the paper's reading) or its "delta".
    """
    settings = context.params.get("train", {})
    context = context.at_unit(settings.get("unit", "output"))
    scores = context.train(settings)
    schedule = select_schedule(scores, context.param("ratio"), context.costs)
    return Plan(context.sampler, schedule, context.costs)
