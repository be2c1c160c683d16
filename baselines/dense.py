"""No acceleration but the sampler's own: as many steps as the run says."""

from __future__ import annotations

from dataclasses import dataclass

from baselines.plan import Plan, PlanContext

EXAMPLES = ({},)


@dataclass(frozen=True)
class Params:
    """This method has no parameters."""


def plan(context: PlanContext, params: Params) -> Plan:
    """Compute everything."""
    return context.dense()
