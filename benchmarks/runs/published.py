"""Schedules of published records in place of those that a run would have to learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from baselines import method
from benchmarks.specs import record
from benchmarks.specs.run import RunSpec
from dipgo.errors import DipgoError


def with_schedules_of(folder: Path, specs: Sequence[RunSpec]) -> list[RunSpec]:
    """Return the runs, where each that would train or search first follows the schedule of its published record.

    Random weights have nothing to learn from, and their seconds do not depend on it. Such a run becomes one of
    `baselines.stored_schedule`, whose parameter `origin` names the record.

    folder: the folder of the records, which have the ids of the runs.
    specs: the runs, each after all that it needs.

    Raises `DipgoError` where a run has no record with a schedule.
    """
    digests: dict[str, str] = {}
    changed = []
    for spec in specs:
        run = replace(spec, needs=tuple(digests.get(digest, digest) for digest in spec.needs))
        if method(run.method).prepares(run.params):
            found = record.find(folder, run.id)
            if found is None or found.schedule is None:
                raise DipgoError(f"run {run.id!r}: {folder} holds no record of it with a schedule; leave the row out")
            schedule = {key: value for key, value in found.schedule.items() if key not in ("calls", "timesteps")}
            origin = f"{found.spec['model']}, {found.file}"
            run = replace(run, method="stored_schedule", params={"origin": origin, "schedule": schedule})
        digests[spec.digest] = run.digest
        changed.append(run)
    return changed
