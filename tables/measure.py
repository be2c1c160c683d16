"""Records and the paper's values into cells: one tidy row of the CSV each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

import pandas as pd

from benchmarks.record import Record
from benchmarks.spec import BenchmarkError
from tables.load import Column, Dataset, Row, Table, paper_value
from tables.stats import Difference, paired_difference

AGREES = 0.02  # relative difference to the paper's value, where the model is the paper's


@dataclass(frozen=True)
class Cell:
    """A line of the CSV, in base units, and `reason`: why a value is missing."""

    row: str
    dataset: str
    metric: str
    value: float | None = None
    paper: float | None = None
    n: int | None = None
    low: float | None = None
    high: float | None = None
    verdict: str = ""
    run: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Comparison:
    """A pruned row against one control: difference = ours - control."""

    row: Row
    control: Row
    dataset: Dataset
    metric: str
    ours: Record
    theirs: Record
    difference: Difference
    verdict: str
    best: bool


def _samples(record: Record, dataset: str, metric: str) -> list[float] | None:
    return record.samples.get(dataset, {}).get(metric)


def _difference(one: Record, other: Record, dataset: str, metric: str) -> Difference | None:
    a, b = _samples(one, dataset, metric), _samples(other, dataset, metric)
    if a is None or b is None:
        return None
    return paired_difference(a, b, f"{metric} on {dataset}, {one.file} against {other.file}")


def paper_verdict(value: float, paper: float, profile: str) -> str:
    """A model of the zoo is never compared with the paper's; in the paper profile within 2 % agrees."""
    if profile != "paper":
        return "another model"
    return "agrees" if abs(value - paper) <= AGREES * abs(paper) else "differs"


def compare(table: Table, records: Mapping[str, Record]) -> list[Comparison]:
    """Every pruned row against each of its controls, by metric and prompt set. The best control is the one
    whose own mean is best, so that the pruned row is held against the strongest."""
    by_run = {row.run: row for row in table.rows}
    found: list[Comparison] = []
    for metric, dataset, row in product(table.compare, table.dataset, table.rows):
        ours = records.get(row.run)
        pairs = []
        for control in row.controls:
            theirs = records.get(control)
            difference = _difference(ours, theirs, dataset.key, metric) if ours and theirs else None
            if difference:
                pairs.append((by_run[control], theirs, difference))
        # Ours is the same in all pairs, so the strongest control leaves the least of the difference.
        direction = table.find_column(metric).direction
        sign = 1 if direction == "up" else -1
        best = min(pairs, key=lambda pair, sign=sign: sign * pair[2].value, default=None)
        for pair in pairs:
            control, theirs, difference = pair
            verdict = difference.verdict(direction)
            found.append(Comparison(row, control, dataset, metric, ours, theirs, difference, verdict, pair is best))
    return found


def _cell(
    table: Table,
    row: Row,
    column: Column,
    dataset: Dataset,
    records: Mapping[str, Record],
    paper: pd.DataFrame,
) -> Cell:
    printed = paper_value(paper, row, dataset.paper, column.paper)
    names = (row.label, dataset.key, column.key)
    record = records.get(row.run)
    if record is None:
        return Cell(*names, paper=printed, verdict="not measured", reason=row.missing or table.no_record)
    baseline = table.baseline_of(row)
    if column.relative and row.run == baseline:
        return Cell(*names, paper=printed, verdict="reference", run=record.file)
    if column.key == f"{table.difference}_diff":
        base = records.get(baseline)
        difference = _difference(record, base, dataset.key, table.difference) if base else None
        if difference:
            d, verdict = difference, difference.verdict(column.direction)
            return Cell(*names, d.value, None, d.n, d.low, d.high, verdict, record.file)
        reason = f"needs {table.difference} samples of this row and of {baseline}"
        return Cell(*names, verdict="not measured", run=record.file, reason=reason)
    measured = record.cell(dataset.key, column.key)
    if measured is None:
        reason = record.absent.get(column.key, f"the record has no {column.key}")
        return Cell(*names, paper=printed, verdict="not measured", run=record.file, reason=reason)
    value, n, low, high = (measured.get(key) for key in ("value", "n", "low", "high"))
    verdict = "" if printed is None else paper_verdict(value, printed, record.spec["profile"])
    return Cell(*names, value, printed, n, low, high, verdict, record.file)


def _control_cells(comparisons: list[Comparison]) -> Iterator[Cell]:
    for c in comparisons:
        d = c.difference
        for name in [c.control.run, "control"] if c.best else [c.control.run]:
            names = (c.row.label, c.dataset.key, f"{c.metric}_vs_{name}")
            yield Cell(*names, d.value, None, d.n, d.low, d.high, c.verdict, c.ours.file)


def measure(
    table: Table, records: Mapping[str, Record], paper: pd.DataFrame, comparisons: list[Comparison]
) -> list[Cell]:
    """All cells: rows x prompt sets x columns in the table's order, then the comparisons with the controls.

    A prompt-independent metric is repeated for each prompt set, as in the paper, which prints a speedup for
    each. Raises `BenchmarkError` when rows hold different numbers of images: FID falls with n.
    """
    cells = [
        _cell(table, row, column, dataset, records, paper)
        for row in table.rows
        for dataset in table.dataset
        for column in table.column
    ]
    seen: dict[tuple[str, str], Cell] = {}
    by_file = {record.file: record for record in records.values()}
    for cell in cells:
        per_image = cell.run and cell.metric in by_file[cell.run].metrics.get(cell.dataset, {})
        if not per_image or cell.n is None:
            continue
        first = seen.setdefault((cell.dataset, cell.metric), cell)
        if first.n != cell.n:
            raise BenchmarkError(
                f"{cell.metric} on {cell.dataset}: n = {first.n} in {first.run} but {cell.n} in {cell.run}; "
                "rows compare at equal n only, run one of them again"
            )
    return cells + list(_control_cells(comparisons))
