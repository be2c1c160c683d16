"""No acceleration but the sampler's own: as many steps as the run says."""

from __future__ import annotations

from baselines.plan import Plan, PlanContext


def plan(context: PlanContext) -> Plan:
    """Everything is computed."""
    return context.dense()
