"""A control of ours: plain DDIM over those timesteps at which another run's schedule computes anything at all.

On DDIM (eta 0) holding the whole prediction is the same as stepping over the kept timesteps only, so this
asks how much of a schedule's quality is in *when* it computes, and needs no learned gate inside a call.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from baselines.context import Plan, PlanContext


def plan(context: PlanContext) -> Plan:
    """Parameter: `of`, the id of the run whose timesteps are taken."""
    other = context.plan_of(context.param("of"))
    computed = other.costs.graph.execute(other.schedule).computed_calls
    kept = other.sampler.timesteps[computed]
    ddim = replace(context.sampler, name="ddim")
    return replace(context, sampler=ddim).skipping(np.flatnonzero(np.isin(ddim.timesteps, kept)))
