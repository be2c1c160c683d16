"""Records and the paper's values into cells: one tidy row of the CSV each."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from statistics import fmean, stdev
from typing import Any

import pandas as pd

from benchmarks.specs.record import Record
from dipgo.errors import DipgoError
from tables.load import departures, paper_value
from tables.spec import EMBEDDED, Column, Dataset, Row, Table
from tables.stats import Difference, paired_difference, seed_difference, unpaired_difference


@dataclass(frozen=True)
class Cell:
    """A line of the CSV, in base units, and `reason`: why a value is missing.

    The value of a row with several training seeds is the mean over its `seeds` runs and `sd` their sample standard
    deviation; `run` names the records, separated by a space.
    """

    row: str
    dataset: str
    metric: str
    value: float | None = None
    paper: float | None = None
    n: int | None = None
    low: float | None = None
    high: float | None = None
    sd: float | None = None
    seeds: int | None = None
    verdict: str = ""
    run: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Comparison:
    """A row against one of its controls: difference = row - control. `ours` and `theirs` are their runs, `best` says
    that it is the best control of its `group`."""

    group: str
    row: Row
    control: Row
    dataset: Dataset
    metric: str
    ours: tuple[Record, ...]
    theirs: tuple[Record, ...]
    difference: Difference
    verdict: str
    best: bool


def records_of(row: Row, records: Mapping[str, Record]) -> tuple[Record, ...]:
    """The records of a row's runs; none unless all are there, since a mean over some seeds is another number."""
    found = tuple(records[run] for run in row.runs if run in records)
    return found if len(found) == len(row.runs) else ()


def row_cell(runs: Sequence[Record], dataset: str, metric: str) -> Mapping[str, Any] | None:
    """`Record.cell` of a row: over several runs the mean, with "sd" and "seeds"; None where a run lacks the metric."""
    cells = [record.cell(dataset, metric) for record in runs]
    if not cells or None in cells:
        return None
    if len(cells) == 1:
        return cells[0]
    values = [cell["value"] for cell in cells]
    return {"value": fmean(values), "n": cells[0].get("n"), "sd": stdev(values), "seeds": len(values)}


def difference(ours: Sequence[Record], theirs: Sequence[Record], dataset: str, metric: str) -> Difference | None:
    """ours - theirs in a metric on one prompt set; None where a side has no run, or a run neither samples of it nor,
    alone on its side, an interval.

    One run a side: paired by prompt and noise, the interval runs over prompts; without samples, unpaired from the
    intervals of both. Several runs of a side are training seeds: each run's mean over the same prompts is one
    observation, and the interval runs over the seeds. Raises `DipgoError` where two runs do not hold equally many
    prompts.
    """
    runs = [*ours, *theirs]
    samples = [record.samples.get(dataset, {}).get(metric) for record in runs]
    if not ours or not theirs:
        return None
    if None in samples:
        cells = [record.metrics.get(dataset, {}).get(metric, {}) for record in runs]
        return unpaired_difference(*cells) if len(runs) == 2 and all("low" in cell for cell in cells) else None
    for record, values in zip(runs, samples, strict=True):
        if len(values) != len(samples[0]):
            raise DipgoError(
                f"{metric} on {dataset}: {len(samples[0])} samples in {runs[0].file}, {len(values)} in {record.file}; "
                "a difference needs the same prompts, run one of them again"
            )
    if len(runs) == 2:
        what = f"{metric} on {dataset}, {runs[0].file} against {runs[1].file}"
        return paired_difference(samples[0], samples[1], what)
    means = [fmean(values) for values in samples]
    return seed_difference(means[: len(ours)], means[len(ours) :])


def paper_verdict(
    cell: Mapping[str, Any], paper: float, column: Column, dataset: Dataset, spec: Mapping[str, Any]
) -> str:
    """How a measured cell stands to the printed value: agrees or differs where the two are of one thing, else in what
    they are not. A model of the zoo is never compared with the paper's. `spec`: of the cell's run."""
    if spec["profile"] == EMBEDDED:
        return "another model"
    if column.apart:
        return column.apart
    if column.scheduled and "ratio" in spec["params"]:
        return "another schedule"
    if column.scored and dataset.size and cell.get("n") != dataset.size:
        return "another number of pictures"
    return "agrees" if abs(cell["value"] - paper) <= column.agrees * abs(paper) else "differs"


def compare(table: Table, records: Mapping[str, Record]) -> list[Comparison]:
    """Every row against each of its controls, by metric, group and prompt set. The best control of a group is the one
    whose own mean is best, so that the row is held against the strongest."""
    found: list[Comparison] = []
    asked = [(metric, group) for contest in table.compare for metric, group in product(contest.metrics, contest.groups)]
    for (metric, group), dataset, row in product(asked, table.dataset, table.rows):
        ours, pairs = records_of(row, records), []
        for control in map(table.find_row, row.controls.get(group, ())):
            theirs = records_of(control, records)
            if gap := difference(ours, theirs, dataset.key, metric):
                pairs.append((control, theirs, gap))
        # Ours is the same in all pairs, so the strongest control leaves the least of the difference.
        direction = table.find_column(metric).direction
        sign = 1 if direction == "up" else -1
        best = min(pairs, key=lambda pair, sign=sign: sign * pair[2].value, default=None)
        for pair in pairs:
            control, theirs, gap = pair
            verdict = gap.verdict(direction)
            found.append(Comparison(group, row, control, dataset, metric, ours, theirs, gap, verdict, pair is best))
    return found


def _files(runs: Sequence[Record]) -> str:
    return " ".join(record.file for record in runs)


def _interval(gap: Difference) -> dict[str, Any]:
    seeds = gap.n if gap.over == "seeds" else None
    return {"value": gap.value, "n": gap.n, "low": gap.low, "high": gap.high, "seeds": seeds}


def _no_record(table: Table, row: Row, records: Mapping[str, Record]) -> str:
    absent = [run for run in row.runs if run not in records]
    if len(absent) == len(row.runs):
        return row.missing or table.no_record
    return f"{table.no_record}; without a record: {', '.join(absent)}"


def _cell(
    table: Table,
    row: Row,
    column: Column,
    dataset: Dataset,
    records: Mapping[str, Record],
    paper: pd.DataFrame,
    departed: Collection[str],
) -> Cell:
    printed = paper_value(paper, row, dataset.paper, column.paper)
    cell = partial(Cell, row.label, dataset.key, column.key, paper=printed)
    runs = records_of(row, records)
    if not runs:
        return cell(verdict="not measured", reason=_no_record(table, row, records))
    cell = partial(cell, run=_files(runs))
    baseline = row.baseline
    if column.relative and row.run == baseline:
        return cell(verdict="reference")
    if table.difference and column.key == f"{table.difference}_diff":
        dense = records_of(table.find_row(baseline), records)
        if gap := difference(runs, dense, dataset.key, table.difference):
            return cell(**_interval(gap), verdict=gap.verdict(column.direction))
        return cell(verdict="not measured", reason=f"needs {table.difference} samples of this row and of {baseline}")
    measured = row_cell(runs, dataset.key, column.key)
    if measured is None:
        lacking = [record for record in runs if record.cell(dataset.key, column.key) is None]
        reason = lacking[0].absent.get(column.key, f"the record has no {column.key}")
        if len(lacking) < len(runs):
            reason += f" ({', '.join(record.id for record in lacking)})"
        return cell(verdict="not measured", reason=reason)
    verdict = "" if printed is None else paper_verdict(measured, printed, column, dataset, runs[0].spec)
    if printed is not None and not departed.isdisjoint(row.runs):
        verdict = "other settings"
    values = {key: measured.get(key) for key in ("value", "n", "low", "high", "sd", "seeds")}
    return cell(**values, verdict=verdict)


def _control_cells(comparisons: list[Comparison]) -> Iterator[Cell]:
    for c in comparisons:
        for name in [c.control.run, c.group] if c.best else [c.control.run]:
            names = (c.row.label, c.dataset.key, f"{c.metric}_vs_{name}".replace(" ", "_"))
            yield Cell(*names, **_interval(c.difference), verdict=c.verdict, run=_files(c.ours))


def _check_equal_n(table: Table, records: Mapping[str, Record]) -> None:
    for dataset, column in product(table.dataset, table.column):
        first = None
        for record in records.values():
            n = record.metrics.get(dataset.key, {}).get(column.key, {}).get("n")
            if n is None:
                continue
            first = first or (n, record.file)
            if first[0] != n:
                raise DipgoError(
                    f"{column.key} on {dataset.key}: n = {first[0]} in {first[1]} but {n} in {record.file}; "
                    "rows compare at equal n only, run one of them again"
                )


def measure(
    table: Table, records: Mapping[str, Record], paper: pd.DataFrame, comparisons: list[Comparison]
) -> list[Cell]:
    """All cells: rows x prompt sets x columns in the table's order, then the comparisons with the controls.

    A prompt-independent metric is repeated for each prompt set, as in the paper, which prints a speedup for
    each. Raises `DipgoError` when runs hold different numbers of images: FID falls with n.
    """
    departed = departures(table, records).keys()
    cells = [
        _cell(table, row, column, dataset, records, paper, departed)
        for row in table.rows
        for dataset in table.dataset
        for column in table.column
    ]
    _check_equal_n(table, records)
    return cells + list(_control_cells(comparisons))
