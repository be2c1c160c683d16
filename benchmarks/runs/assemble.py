"""A finished run's pieces, which lie in the workspace, into its record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from baselines import Plan
from benchmarks.machine.provenance import provenance
from benchmarks.models import model as models
from benchmarks.models.macs import macs_cells
from benchmarks.prepare import forecasts, training
from benchmarks.prepare.costs import training_cells
from benchmarks.prepare.forecasts import Learning
from benchmarks.prepare.search import fitness_of, search_cells
from benchmarks.prepare.training import Training
from benchmarks.runs.tasks import FORECASTS, PRUNERS, SEARCHES, unscored
from benchmarks.specs import record
from benchmarks.specs.record import Record
from benchmarks.specs.run import RunSpec
from benchmarks.speed.latency import latency_cells


def assemble(spec: RunSpec, plan: Plan, workspace: Path, settings: Mapping[str, int]) -> Record:
    """The record of a run whose pictures are scored. `settings`: how it was run ("batch", "workers", "processes")."""
    folder = workspace / spec.digest
    scored = {name: json.loads((folder / f"{name}.json").read_text()) for name in spec.prompts}
    cells = macs_cells(plan, models.load(spec).branches(spec.guidance))
    absent = {} if "step_skip_share" in cells else {"step_skip_share": "nothing is skipped"}
    absent |= unscored(spec)
    if "latency" in spec.metrics:
        cells |= latency_cells(json.loads((folder / "latency.json").read_text()))
    trained: list[Training | Learning] = []
    if "train" in spec.params:
        trained.append(training.train_once(spec, spec.params["train"], workspace / PRUNERS))
    if "learn" in spec.params:
        trained.append(forecasts.read(forecasts.path_of(spec, workspace / FORECASTS)))
    if trained:
        cells |= training_cells(trained)
    trace = None
    if "search" in spec.metrics:
        evaluated = fitness_of(spec, workspace / SEARCHES)
        cells |= search_cells(evaluated.journal, evaluated([plan.schedule])[0])
        if "search" in spec.params:
            trace = evaluated.journal.trace
        elif "train" in spec.params:
            cells["search_seconds"] = cells["training_seconds"]
            absent["evaluations"] = "no search: the pruner is trained by gradients"
    return Record(
        id=spec.id,
        digest=spec.digest,
        spec=spec.to_json(),
        metrics={record.ALL: cells, **{name: found["metrics"] for name, found in scored.items()}},
        samples={name: found["samples"] for name, found in scored.items()},
        absent=absent,
        provenance=provenance({spec.model: spec.revision}, settings["workers"])
        | {"seconds": {name: found["seconds"] for name, found in scored.items()}}
        | settings,
        schedule=schedule_of(plan),
        trace=trace,
    )


def schedule_of(plan: Plan) -> dict[str, Any] | None:
    """A plan's schedule as a record holds it; None where it reuses nothing."""
    schedule = plan.schedule
    return schedule.to_dict() | {"calls": schedule.calls} if schedule.reuse.any() else None
