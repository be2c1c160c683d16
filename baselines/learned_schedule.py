"""The paper's method: scores from a trained pruner, a schedule at the asked ratio by Algorithm 1."""

from __future__ import annotations

from dataclasses import replace

from baselines.plan import Plan, PlanContext
from dipgo import Forecast, select_schedule


def plan(context: PlanContext) -> Plan:
    """Parameters: `ratio` of the MACs to prune, and `train`, the pruner's training settings.

    `train.unit` says what is reused: a block's "output" (the paper's reading), its "delta", or the whole "call".
    `train.order` above 0 forecasts instead of holding, in the training and in the schedule. With `learn` (as of
    `learned_forecast`) the coefficients are fitted to the schedule.
    """
    settings = context.params.get("train", {})
    context = context.at_unit(settings.get("unit", "output"))
    scores = context.train(settings)
    order = settings.get("order", 0)
    rule = Forecast(context.sampler.noise_ratios, order) if order else None
    plan = Plan(context.sampler, select_schedule(scores, context.param("ratio"), context.costs, rule), context.costs)
    learn = context.params.get("learn")
    return plan if learn is None else replace(plan, schedule=context.learn(plan, learn))
