"""A schedule that another run found, for a model whose blocks have the same names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from baselines.plan import Plan, PlanContext
from dipgo import Schedule

EXAMPLES = ({"schedule": {"sites": [""], "reuse": ["0", "1", "1", "0", "1", "1"]}},)


@dataclass(frozen=True)
class Params:
    """The parameters of `plan`."""

    schedule: Mapping
    """As `Schedule.to_dict` gives it."""
    origin: str = ""
    """Where it comes from, for the reader."""


def plan(context: PlanContext, params: Params) -> Plan:
    """Follow the stored schedule.

    Raises `DipgoError` where the denoiser has no such sites, or its sampler makes another number of calls.
    """
    schedule = Schedule.from_dict(params.schedule)
    return Plan(context.sampler, schedule, context.at_sites(schedule.sites).costs)
