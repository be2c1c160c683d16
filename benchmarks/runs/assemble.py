"""A finished run's pieces, which lie in the workspace, into its record."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from baselines import Plan
from benchmarks.machine.provenance import provenance
from benchmarks.models import model as models
from benchmarks.models.generate import image_paths, schedule_path
from benchmarks.models.macs import decided_cells, macs_cells
from benchmarks.prepare.costs import costs_of
from benchmarks.runs.tasks import captions_of, unscored
from benchmarks.specs import record
from benchmarks.specs.record import Record
from benchmarks.specs.run import RunSpec
from benchmarks.speed.latency import latency_cells
from dipgo import Schedule


def assemble(spec: RunSpec, plan: Plan, workspace: Path, settings: Mapping[str, int]) -> Record:
    """Return the record of a run whose pictures are scored.

    settings: how the run was made ("batch", "workers", "processes").
    """
    folder = workspace / spec.digest
    scored = {name: json.loads((folder / f"{name}.json").read_text()) for name in spec.prompts}
    branches, decided = models.load(spec).branches(spec.guidance), _decided(spec, plan, folder)
    cells = decided_cells(plan, decided, branches) if decided else macs_cells(plan, branches)
    absent = {} if "step_skip_share" in cells else {"step_skip_share": "nothing is skipped"}
    absent |= unscored(spec)
    if "latency" in spec.metrics:
        cells |= latency_cells(json.loads((folder / "latency.json").read_text()))
    costs = costs_of(spec, plan, workspace)
    done = Record(
        id=spec.id,
        digest=spec.digest,
        spec=spec.to_json(),
        metrics={record.ALL: cells | costs.cells, **{name: done["metrics"] for name, done in scored.items()}},
        samples={name: done["samples"] for name, done in scored.items()},
        absent=absent | costs.absent,
        provenance=provenance({spec.model: spec.revision}, settings["workers"])
        | {"seconds": {name: done["seconds"] for name, done in scored.items()}}
        | settings,
        schedule=None if decided else schedule_of(plan),
        decided=_counted(decided),
        trace=costs.trace,
        prepared=costs.account,
    )
    done.check_asked(f"run {spec.id!r}")
    return done


def schedule_of(plan: Plan) -> dict[str, Any] | None:
    """Return a plan's schedule as a record holds it; None where it reuses nothing."""
    schedule = plan.schedule
    return schedule.to_dict() | {"calls": schedule.calls} if schedule.reuse.any() else None


def _decided(spec: RunSpec, plan: Plan, folder: Path) -> list[Schedule]:
    """Return what a plan's policy decided for each picture of each prompt set; nothing without a policy."""
    if plan.policy is None:
        return []
    pictures = [path for name in spec.prompts for path in image_paths(folder / name, len(captions_of(spec, name)))]
    return [Schedule.load(schedule_path(path)) for path in pictures]


def _counted(schedules: Sequence[Schedule]) -> list[dict[str, Any]]:
    """Return each distinct schedule as a record holds it, with the number of its pictures; the most frequent first."""
    known = {schedule.digest: schedule for schedule in schedules}
    counts = Counter(schedule.digest for schedule in schedules)
    return [
        known[digest].to_dict() | {"calls": known[digest].calls, "pictures": count}
        for digest, count in counts.most_common()
    ]
