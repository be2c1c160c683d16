"""A control of ours: plain DDIM over those timesteps at which another run's schedule spends most.

On DDIM (eta 0) holding the whole prediction is the same as stepping over the kept timesteps only. So with as many
timesteps as the schedule's MACs buy, this asks how much of its quality lies in *when* it computes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from baselines.plan import Plan, PlanContext
from dipgo.errors import DipgoError


def plan(context: PlanContext) -> Plan:
    """Parameters: `of`, the id of the run whose schedule is looked at, and `calls`, how many timesteps to keep.

    The first call is always kept; of two calls that cost the same the earlier one is.
    """
    other, count = context.plan_of(context.param("of")), context.param("calls")
    spent = other.costs.full.per_call(other.costs.graph.execute(other.schedule))
    spent[0] = np.inf
    ranked = other.sampler.call_steps[np.argsort(-spent, kind="stable")]
    kept = list(dict.fromkeys(ranked.tolist()))[:count]  # PLMS makes two calls in one step
    if len(kept) < count or count < 1:
        raise DipgoError(f"calls is {count}; it must lie between 1 and {len(kept)}")
    ddim = replace(context.sampler, name="ddim", steps=other.sampler.steps)
    return replace(context, sampler=ddim).skipping(sorted(kept))
