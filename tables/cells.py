"""Turns records and the paper's values into the cells of a table. A cell is a line of the CSV."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from statistics import fmean, stdev
from typing import Any

import pandas as pd

from benchmarks.specs.profiles import PROFILES
from benchmarks.specs.record import Record
from dipgo.errors import DipgoError
from tables.load import departures, paper_value
from tables.spec import Column, Dataset, Row, Table
from tables.stats import Difference, paired_difference, seed_difference, unpaired_difference


@dataclass(frozen=True)
class Cell:
    """One metric of one row on one prompt set, in base units."""

    row: str
    """The label of the row."""
    dataset: str
    metric: str
    value: float | None = None
    """The measured value, or the mean over the training seeds; None if it was not measured."""
    paper: float | None = None
    """The value that the paper prints."""
    n: int | None = None
    """The number of samples behind the value."""
    low: float | None = None
    """The low end of the interval of `value`."""
    high: float | None = None
    sd: float | None = None
    """The sample standard deviation over the training seeds."""
    seeds: int | None = None
    """The number of training seeds, where there are several."""
    verdict: str = ""
    run: str = ""
    """The names of the records' files, separated by a space."""
    reason: str = ""
    """Why the value is missing. The CSV leaves it out."""


@dataclass(frozen=True)
class Comparison:
    """A row against one of its controls in one metric on one prompt set."""

    group: str
    """The group of controls that the control is in."""
    row: Row
    control: Row
    dataset: Dataset
    metric: str
    ours: tuple[Record, ...]
    """The records of the row."""
    theirs: tuple[Record, ...]
    """The records of the control."""
    difference: Difference
    """The row's value minus the control's."""
    verdict: str
    best: bool
    """Whether the control is the best of its group."""


def records_of(row: Row, records: Mapping[str, Record]) -> tuple[Record, ...]:
    """Return the records of a row's runs. Empty if one is absent, since the mean over fewer seeds is another number."""
    return tuple(records[run] for run in row.runs) if records.keys() >= set(row.runs) else ()


def row_cell(runs: Sequence[Record], dataset: str, metric: str) -> Mapping[str, Any] | None:
    """Return a row's value of a metric, as `Record.cell` gives it. None if a run lacks the metric.

    The value of a row of several runs is their mean; such a cell also has "sd" and "seeds".
    """
    cells = [record.cell(dataset, metric) for record in runs]
    if not cells or None in cells:
        return None
    if len(cells) == 1:
        return cells[0]
    values = [cell["value"] for cell in cells]
    return {"value": fmean(values), "n": cells[0].get("n"), "sd": stdev(values), "seeds": len(values)}


def difference(ours: Sequence[Record], theirs: Sequence[Record], dataset: str, metric: str) -> Difference | None:
    """Return the difference ours - theirs in a metric on one prompt set, with its interval. None if it cannot be
    computed.

    Two single runs are paired by prompt and noise, and the interval runs over prompts. If they have no samples of the
    metric, the difference is unpaired and comes from the interval of each run. Several runs on one side are trainings
    with different seeds: the mean of each run over the prompts is one observation, and the interval runs over seeds.

    ours, theirs: the records of each side's runs.
    dataset: the name of the prompt set.
    metric: the name of the metric.

    Raises `DipgoError` if two runs hold different numbers of prompts.
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
    """Tell whether a measured cell "agrees" with the printed value or "differs", or else why the two cannot be
    compared.

    cell: the measured cell.
    paper: the printed value.
    column, dataset: those of the cell.
    spec: the spec of the cell's run. A model of the zoo is never compared with the paper's.
    """
    if not PROFILES[spec["profile"]].paper_models:
        return "another model"
    if column.apart:
        return column.apart
    if column.scheduled and "ratio" in spec["params"]:
        return "another schedule"
    if column.scored and dataset.size and cell.get("n") != dataset.size:
        return "another number of pictures"
    return "agrees" if abs(cell["value"] - paper) <= column.agrees * abs(paper) else "differs"


def comparisons_of(table: Table, records: Mapping[str, Record]) -> list[Comparison]:
    """Return the comparisons of every row with each of its controls, by metric, group and prompt set.

    The best control of a group is the one with the best mean, so that the row is held against the strongest.
    """
    comparisons: list[Comparison] = []
    asked = [(metric, group) for contest in table.compare for metric, group in product(contest.metrics, contest.groups)]
    for (metric, group), dataset, row in product(asked, table.dataset, table.rows):
        ours, pairs = records_of(row, records), []
        for control in map(table.find_row, row.controls.get(group, ())):
            theirs = records_of(control, records)
            if gap := difference(ours, theirs, dataset.key, metric):
                pairs.append((control, theirs, gap))
        # All pairs share the row, so the strongest control has the least favourable difference.
        direction = table.find_column(metric).direction
        sign = 1 if direction == "up" else -1
        best = min(pairs, key=lambda pair, sign=sign: sign * pair[2].value, default=None)
        for pair in pairs:
            control, theirs, gap = pair
            sides = (row, control, dataset, metric, ours, theirs)
            comparisons.append(Comparison(group, *sides, gap, gap.verdict(direction), pair is best))
    return comparisons


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


def table_cells(
    table: Table, records: Mapping[str, Record], paper: pd.DataFrame, comparisons: list[Comparison]
) -> list[Cell]:
    """Return all cells of a table: rows x prompt sets x columns in the table's order, then the comparisons with
    controls.

    A metric that depends on no prompt is repeated for each prompt set, as the paper does with speedups.

    table: the table.
    records: its records by run id.
    paper: the printed values, from `load_paper`.
    comparisons: those of `comparisons_of`.

    Raises `DipgoError` if runs hold different numbers of images, since FID falls with that number.
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
