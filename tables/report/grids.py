"""Tables of the report that a reader can sort."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.specs.record import ALL
from tables.format import ARROWS, Footnotes
from tables.full import show
from tables.measured import Measured
from tables.notes import commit_of
from tables.spec import Dataset

SECONDS = ("training_seconds", "search_seconds")
"""The metrics that say how long a training or a search took."""


@dataclass(frozen=True)
class Entry:
    """A cell: its text, and what the cell is sorted by."""

    text: str
    key: str
    """A number as text, or words; empty where there is no value, which sorts last."""


@dataclass(frozen=True)
class Grid:
    """A table that can be sorted by each of its columns."""

    title: str
    headers: list[str]
    rows: list[list[Entry]]
    notes: list[str]
    """The reasons for absent values, each after its mark."""


def rows_of(measured: Measured, dataset: Dataset) -> Grid:
    """Return all rows of a table on one prompt set."""
    table, marks = measured.table, Footnotes()
    cells = {(cell.row, cell.dataset, cell.metric): cell for cell in measured.cells}
    rows = []
    for group in table.group:
        for row in group.row:
            line = [Entry(row.label, row.label), Entry(group.title, group.title)]
            for column in table.shown:
                cell = cells[row.label, dataset.key, column.key]
                line.append(Entry(show(cell, column, marks, False), "" if cell.value is None else repr(cell.value)))
            rows.append(line)
    headers = ["Row", "Group", *(column.title + ARROWS[column.direction] for column in table.shown)]
    return Grid(dataset.title, headers, rows, marks.lines)


def provenance(measured: Measured) -> Grid:
    """Return where the records of a table come from, a line a record."""
    rows = []
    for item in measured.records.values():
        stamp, spec = item.provenance, item.spec
        values = [item.file, spec["model"], spec["revision"][:12], str(spec["limit"]), str(stamp.get("date", ""))[:10]]
        rows.append([Entry(text, text) for text in (*values, commit_of(stamp), str(stamp.get("device", "")))])
    headers = ["Record", "Model", "Weights", "Pictures", "Day", "Commit", "Machine"]
    return Grid("Where the numbers come from", headers, rows, [])


def trainings(measured: Iterable[Measured]) -> Grid:
    """Return how long the trainings and searches of the rows took, a line a record."""
    shown: dict[str, list[Entry]] = {}
    for each in measured:
        for row in each.table.rows:
            for item in (each.records[run] for run in row.runs if run in each.records):
                cells = item.metrics.get(ALL, {})
                minutes = [cells[name]["value"] / 60 for name in SECONDS if name in cells]
                if minutes and item.file not in shown:
                    texts = [Entry(text, text) for text in (row.label, item.spec["model"])]
                    shown[item.file] = [*texts, Entry(f"{sum(minutes):.1f}", repr(sum(minutes)))]
                    shown[item.file].append(Entry(item.file, item.file))
    return Grid("How long they took", ["Row", "Model", "Minutes", "Record"], list(shown.values()), [])
