"""The cells of a record that follow from its plan: MACs, and what the schedule is made of."""

from __future__ import annotations

from typing import Any

import numpy as np

from baselines import Plan


def macs_cells(plan: Plan, branches: int) -> dict[str, dict[str, Any]]:
    """Return the cells of one picture's MACs in both conventions, and of what the schedule is made of.

    branches: the guidance branches of a call.

    The paper charges steps and not calls. A step of two calls is charged with the call that costs more.
    """
    execution = plan.costs.graph.execute(plan.schedule)
    steps = plan.sampler.call_steps
    charged = np.zeros(steps[-1] + 1)
    np.maximum.at(charged, steps, plan.costs.paper.per_call(execution))
    cells = {
        "macs_paper": float(charged.sum()) * plan.costs.paper_branches,
        "macs_full": float(plan.costs.full.per_call(execution).sum()) * branches,
        "pruned_ratio": plan.costs.pruned_ratio(plan.schedule),
        "computed_calls": int(execution.computed_calls.sum()),
        "step_skip_share": plan.costs.step_skip_share(plan.schedule),
    }
    return {name: {"value": value} for name, value in cells.items() if value is not None}
