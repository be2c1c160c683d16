"""What finished runs gave, for the end of a command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from benchmarks.specs import record
from benchmarks.specs.metrics import METRICS
from benchmarks.specs.run import RunSpec


def summary(specs: Sequence[RunSpec], records: Path) -> str:
    """Return a table of the scores of every run and prompt set, and the folder of the records.

    A run's MACs are in units of 10^9 and count all operations. A value that was not measured is left empty.
    """
    rows = []
    for spec in specs:
        done = record.find(records, spec.id, spec.digest)
        if done is None:
            continue
        macs = done.cell(record.ALL, "macs_full")
        for prompts in spec.prompts:
            cells = done.metrics.get(prompts, {})
            scores = {name: f"{cells[name]['value']:.{METRICS[name].digits}f}" for name in METRICS if name in cells}
            rows.append({"run": done.id, "prompts": prompts, "GMACs": macs and f"{macs['value'] / 1e9:.3f}", **scores})
    return f"{tabulate(rows, headers='keys')}\n\nThe records are in {records}.\n" if rows else ""
