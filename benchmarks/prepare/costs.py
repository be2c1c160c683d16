"""What preparations cost, as cells of a record."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baselines import Plan, method
from baselines.search import FitnessConfig, ScheduleSearch
from benchmarks.prepare import kept
from benchmarks.prepare.studio import RunStudio
from benchmarks.specs.run import RunSpec


@dataclass
class Costs:
    """The cells of a record that say what a run's preparations cost."""

    cells: dict[str, dict[str, Any]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    """The reason for each cell that is not there."""
    trace: list[tuple[int, float]] | None = None
    """How the best loss fell over the evaluations of a search."""
    account: dict[str, Any] = field(default_factory=dict)
    """What the preparations tell of their results, such as what was chosen among what."""


def costs_of(spec: RunSpec, plan: Plan, workspace: Path) -> Costs:
    """Return what the preparations of a run cost: the sum of their seconds, and the highest of their peaks of memory.

    A run that asks for the metric "search" also says the loss of its schedule on the calibration pictures. A pruner is
    what the searches are compared with, so its seconds of training stand for those of a search.
    """
    costs, prepared = Costs(), kept.preparations(spec, workspace)
    values: dict[str, float] = {}
    searched = any(isinstance(preparation, ScheduleSearch) for preparation in prepared.values())
    for path, preparation in prepared.items():
        costs.account |= preparation.account(kept.read(path))
        if isinstance(preparation, ScheduleSearch) and "search" not in spec.metrics:
            continue
        data = kept.read(path)
        for name, value in preparation.cells(data).items():
            known = values.get(name, 0)
            values[name] = max(known, value) if name.endswith("peak_memory") else known + value
        costs.trace = preparation.trace(data) or costs.trace
    if "search" in spec.metrics and plan.policy is not None:
        costs.absent["fitness"] = "no schedule of all pictures: the method decides while it draws"
    elif "search" in spec.metrics:
        params = method(spec.method).read(spec.params)
        config = getattr(params, "fitness", FitnessConfig())
        values["fitness"] = RunStudio(spec, workspace).loss(plan, config)
        if prepared and not searched:
            values["search_seconds"] = values["training_seconds"]
            costs.absent["evaluations"] = "no search: the pruner is trained by gradients"
    costs.cells = {name: {"value": value} for name, value in values.items()}
    return costs
