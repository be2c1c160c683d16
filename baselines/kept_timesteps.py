"""A control of ours: plain DDIM over those timesteps at which another run's schedule spends most.

On DDIM (eta 0) holding the whole prediction is the same as stepping over the kept timesteps only. So with as many
timesteps as the schedule's MACs buy, this asks how much of its quality lies in *when* it computes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from baselines.plan import Plan, PlanContext
from dipgo.errors import DipgoError

EXAMPLES = ({"of": "another", "calls": 2},)


@dataclass(frozen=True)
class Params:
    """The parameters of `plan`."""

    of: str
    """The id of the run whose schedule is looked at."""
    calls: int
    """How many timesteps to keep."""


def plan(context: PlanContext, params: Params) -> Plan:
    """Run DDIM over the timesteps at which the other run's schedule spends most.

    The first call is always kept. Of two calls that cost the same the earlier one is kept.
    """
    other, count = context.studio.plan_of(params.of), params.calls
    spent = other.costs.full.per_call(other.costs.graph.execute(other.schedule))
    spent[0] = np.inf
    ranked = other.sampler.call_steps[np.argsort(-spent, kind="stable")]
    kept = list(dict.fromkeys(ranked.tolist()))  # PLMS makes two calls in one step
    if not 1 <= count <= len(kept):
        raise DipgoError(f"calls is {count}; it must lie between 1 and {len(kept)}")
    ddim = replace(context.sampler, name="ddim", steps=other.sampler.steps)
    return replace(context, sampler=ddim).skipping(sorted(kept[:count]))
