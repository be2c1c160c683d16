"""The cells of a record that follow from its plan: MACs, and what the schedule is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from baselines import Plan
from dipgo import Schedule


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


def decided_cells(plan: Plan, schedules: Sequence[Schedule], branches: int) -> dict[str, dict[str, Any]]:
    """Return the same cells as means over pictures, one schedule each, with the lowest and the highest value.

    plan: how the pictures were drawn, by a policy.
    schedules: what the policy decided for each picture.
    branches: the guidance branches of a call.
    """
    known = {schedule.digest: schedule for schedule in schedules}
    by_digest = {digest: macs_cells(replace(plan, schedule=s), branches) for digest, s in known.items()}
    pictures = [by_digest[schedule.digest] for schedule in schedules]
    cells = {}
    for name in pictures[0]:
        values = [picture[name]["value"] for picture in pictures if name in picture]
        low, high = min(values), max(values)
        mean = min(max(float(np.mean(values)), low), high)  # rounding must not take it beyond them
        cells[name] = {"value": mean, "n": len(values), "low": low, "high": high}
    return cells
