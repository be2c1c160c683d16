"""Cells of a record that depend on no prompt: MACs, the schedule's make-up, latency, training, search."""

from __future__ import annotations

from typing import Any

from baselines import Plan


def macs_cells(plan: Plan, branches: int) -> dict[str, dict[str, Any]]:
    """MACs of one image in both conventions, and what the schedule is made of. `branches`: guidance branches a call."""
    execution = plan.costs.graph.execute(plan.schedule)
    charged = plan.sampler.charged_steps / plan.sampler.calls  # the paper charges steps, not calls
    cells = {
        "macs_paper": float(plan.costs.paper.per_call(execution).sum()) * charged * plan.costs.paper_branches,
        "macs_full": float(plan.costs.full.per_call(execution).sum()) * branches,
        "pruned_ratio": plan.costs.pruned_ratio(plan.schedule),
        "computed_calls": int(execution.computed_calls.sum()),
        "step_skip_share": plan.costs.step_skip_share(plan.schedule),
    }
    return {name: {"value": value} for name, value in cells.items() if value is not None}
