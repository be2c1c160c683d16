"""Cells of a record that depend on no prompt: MACs, the schedule's make-up, latency, training, search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

from baselines import Plan
from benchmarks.fitness import Journal
from benchmarks.forecasts import Learning
from benchmarks.training import Training

LATENCY_METRICS = ("denoiser", "end_to_end")


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


def latency_cells(rounds: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, dict[str, Any]]:
    """Median seconds and speedups with their quartiles; a speedup pairs the two runs of one round."""
    cells = {}
    for name in LATENCY_METRICS:
        seconds = [once[name] for once in rounds["run"]]
        pairs = zip(rounds["dense"], seconds, strict=True)
        cells[f"seconds_{name}"] = _spread(seconds)
        cells[f"speedup_{name}"] = _spread([dense[name] / own for dense, own in pairs])
    return cells


def training_cells(trained: Sequence[Training | Learning]) -> dict[str, dict[str, Any]]:
    """What training a pruner, learning a forecast, or one after the other cost: seconds, and bytes of resident
    memory."""
    return {
        "training_seconds": {"value": sum(each.seconds for each in trained)},
        "training_peak_memory": {"value": max(each.peak_memory for each in trained)},
    }


def search_cells(journal: Journal, loss: float) -> dict[str, dict[str, Any]]:
    """The chosen schedule's loss on the calibration pictures and, of a search, what it cost: seconds, evaluations,
    and how many times the evaluations a second of a plain loop it made, which evaluates one schedule after the other
    and makes the dense pictures anew each time, or keeps them."""
    cells = {"fitness": loss}
    if journal.plain is not None:
        count, (plain, kept) = len(journal.losses), journal.plain
        cells |= {
            "search_seconds": journal.seconds,
            "evaluations": count,
            "evaluations_per_second": count / journal.seconds,
            "speedup_over_plain_loop": plain * count / journal.seconds,
            "speedup_over_loop_keeping_dense": kept * count / journal.seconds,
        }
    return {name: {"value": value} for name, value in cells.items()}


def _spread(values: Sequence[float]) -> dict[str, Any]:
    low, high = np.quantile(values, [0.25, 0.75])
    return {"value": median(values), "n": len(values), "low": float(low), "high": float(high)}
