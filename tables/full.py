"""The page of a table that shows every row: a section a prompt set, the notes, and where the records come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.specs.profiles import PROFILES
from benchmarks.specs.record import Record
from tables.cells import Cell
from tables.format import ARROWS, LEFT, MARKS, Footnotes, deviation, grid, number, spread
from tables.load import departures
from tables.notes import notes, origin
from tables.spec import Column, Dataset, Group, Row, Table


def show(cell: Cell, column: Column, notes: Footnotes, inline: bool) -> str:
    """Return the text of a cell, with the paper's value in brackets if `inline`."""
    paper = f" ({number(cell.paper, column.digits, column.scale)})" if inline and cell.paper is not None else ""
    if cell.verdict == "reference":
        return "ref."
    if cell.value is None:
        return notes.mark(cell.reason) + paper
    low, high = (cell.low, cell.high) if column.spread else (None, None)
    signed = column.relative and column.spread
    text = spread(cell.value, low, high, column.digits, column.scale, signed)
    return text + deviation(cell.sd, column.digits, column.scale) + paper + MARKS.get(cell.verdict, "")


def _label(row: Row) -> str:
    return f"† {row.label}" if row.added else row.label


def _dataset_section(
    table: Table, dataset: Dataset, cells: Mapping[tuple[str, str, str], Cell], notes: Footnotes
) -> str:
    headers = ["Row"] + [column.title + ARROWS[column.direction] for column in table.shown]
    inline = PROFILES[table.profile].paper_models

    def line(row: Row) -> list[str]:
        values = (show(cells[row.label, dataset.key, column.key], column, notes, inline) for column in table.shown)
        return [_label(row), *values]

    def lines(group: Group) -> list[list[str]]:
        return [[f"**{group.title}**"] + [""] * (len(headers) - 1), *map(line, group.row)]

    scored = [column.key for column in table.column if column.scored and not column.relative]
    sizes = {cells[row.label, dataset.key, key].n for row in table.rows for key in scored} - {None}
    n = f", n = {min(sizes)} a run" if sizes else ""
    shown = grid((line for item in table.group for line in lines(item)), headers, LEFT)
    return f"## {dataset.title}{n}\n\n{shown}\n"


def measured_on(table: Table, records: Mapping[str, Record]) -> str:
    """Return the line that names the models, devices, numbers of images, dates and commits of the records."""
    if not records:
        return f"Nothing measured: {table.no_record}."
    specs = [record.spec for record in records.values()]
    devices, days, commits = origin(records.values())
    spec = specs[0]
    weights = {spec["model"]: spec["revision"][:12] for spec in specs}
    models = ", ".join(f"{model} (weights {digest})" for model, digest in weights.items())
    sizes = ", ".join(dict.fromkeys(str(spec["resolution"]) for spec in specs))
    parts = [
        f"{models} at {sizes} px, {spec['profile']} profile",
        devices,
        f"{spec['limit']} images a prompt set and run" if not PROFILES[table.profile].paper_models else "",
        days,
        commits,
    ]
    return f"Measured on {'; '.join(part for part in parts if part)}.{departed(departures(table, records))}"


def departed(by_run: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a sentence that names the settings of records that differ from the suite's, given them by run id; empty if
    there are none."""
    settings = sorted({f"{key} = {value}" for changed in by_run.values() for key, value in changed.items()})
    return f" **Not the suite's settings**, in {len(by_run)} runs: {', '.join(settings)}." if by_run else ""


def _facts(table: Table, records: Mapping[str, Record]) -> str:
    lines = []
    for fact in table.fact:
        record = records.get(fact.run)
        cells = [(dataset.key, record.cell(dataset.key, fact.key)) for dataset in table.dataset] if record else []
        values = [(key, cell) for key, cell in cells if cell]
        if values and fact.key in record.metrics.get("all", {}):
            values = [("", values[0][1])]
        shown = [
            number(cell["value"], fact.digits, fact.scale) + fact.unit + (f" ({key})" if key else "")
            for key, cell in values
        ]
        lines.append(f"- {fact.title}: {', '.join(shown) or 'not measured'}")
    return "\n".join(lines) + "\n"


def full(table: Table, records: Mapping[str, Record], cells: Iterable[Cell]) -> str:
    """Return the markdown of all rows.

    table: the table.
    records: its records by run id.
    cells: those of `table_cells`.
    """
    marks = Footnotes()
    lookup = {(cell.row, cell.dataset, cell.metric): cell for cell in cells}
    note = PROFILES[table.profile].note
    head = f"{note}\n\n" if note else ""
    sections = [f"# {table.title}, all rows\n\n{head}{_facts(table, records)}"]
    sections += [_dataset_section(table, dataset, lookup, marks) for dataset in table.dataset]
    sections.append("\n".join(["## Notes\n", *(f"- {line}" for line in (*notes(table), *marks.lines))]) + "\n")
    sections.append(f"## Provenance\n\n{measured_on(table, records)}\n")
    return "\n".join(sections)
