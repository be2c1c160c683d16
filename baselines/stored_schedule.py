"""A schedule that another run found, for a model whose blocks have the same names."""

from __future__ import annotations

from baselines.plan import Plan, PlanContext
from dipgo import Schedule


def plan(context: PlanContext) -> Plan:
    """Parameters: `schedule`, as `Schedule.to_dict` gives it, and for the reader `origin`, where it comes from.

    Raises `DipgoError` where the denoiser has no such sites, or its sampler makes another number of calls.
    """
    schedule = Schedule.from_dict(context.param("schedule"))
    return Plan(context.sampler, schedule, context.at_sites(schedule.sites).costs)
