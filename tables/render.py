"""Renders a table as CSV and markdown from its records. The same records give the same bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path

from benchmarks.specs.profiles import DEFAULT, PROFILES, place
from benchmarks.specs.record import Record
from tables.cells import Cell, Comparison, comparisons_of, row_cell, table_cells
from tables.format import Footnotes, csv_text, deviation, grid, number, spread
from tables.load import departures, load_paper, load_records, load_table
from tables.notes import FEW_STEPS_WARNING, notes, origin
from tables.spec import CONTROL, Column, Contest, Dataset, Group, Row, Table

CSV_COLUMNS = ["row", "dataset", "metric", "value", "paper", "n", "low", "high", "sd", "seeds", "verdict", "run"]
ARROWS = {"up": " ↑", "down": " ↓", "": ""}
MARKS = {"better": " ▲", "worse": " ▼", "no difference": " =", "agrees": " ✓", "differs": " ≠"}
COMPARE_HEADERS = ["Row", "Its value", "Best control", "Control's value", "Row − control [95 %]", "Verdict"]
LEFT = {"Against", "Row", "Prompts", "Best control", "Verdict"}


def _show(cell: Cell, column: Column, notes: Footnotes, inline: bool) -> str:
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
    paper_columns = table.paper_column if dataset.paper else ()
    headers += [f"{table.paper_model} {column.title}" for column in paper_columns]
    printed = {column.paper: column.key for column in table.column if column.paper}

    def line(row: Row) -> list[str]:
        values = [_show(cells[row.label, dataset.key, column.key], column, notes, inline) for column in table.shown]
        for column in paper_columns:
            value = cells[row.label, dataset.key, printed[column.metric]].paper
            values.append("" if value is None else f"*{number(value, column.digits, column.scale)}*")
        return [_label(row), *values]

    def lines(group: Group) -> list[list[str]]:
        return [[f"**{group.title}**"] + [""] * (len(headers) - 1), *map(line, group.row)]

    scored = [column.key for column in table.column if column.scored and not column.relative]
    sizes = {cells[row.label, dataset.key, key].n for row in table.rows for key in scored} - {None}
    n = f", n = {min(sizes)} a run" if sizes else ""
    shown = grid((line for item in table.group for line in lines(item)), headers, LEFT)
    paper = f"In italics: what the paper prints for {dataset.paper}, on another model.\n\n" if paper_columns else ""
    return f"## {dataset.title}{n}\n\n{paper}{shown}\n"


def _mean(runs: Sequence[Record], dataset: Dataset, column: Column) -> str:
    cell = row_cell(runs, dataset.key, column.key)
    return number(cell["value"], column.digits, column.scale) + deviation(cell.get("sd"), column.digits, column.scale)


def _both(sides: Iterable[Sequence[Record]], dataset: Dataset, column: Column) -> str:
    """Return the values of a row and of its control in a column."""
    cells = [row_cell(runs, dataset.key, column.key) for runs in sides]
    return " / ".join(number(cell["value"], column.digits, column.scale) if cell else "–" for cell in cells)


def _summary(table: Table, contest: Contest, comparisons: Iterable[Comparison]) -> str:
    """Return the counts of verdicts by group of controls.

    A control that has controls of its own, as in an ablation, is counted by its label.
    """
    called = {group: "the best control" if group == CONTROL else group for group in contest.groups}
    verdicts: dict[str, list[str]] = {name: [] for name in called.values()}
    for c in comparisons:
        against = c.control.label if c.group == CONTROL and c.control.controls else called[c.group]
        verdicts.setdefault(against, []).append(c.verdict)
    lines = []
    for against, words in verdicts.items():
        counts = ", ".join(f"{words.count(word)} {word}" for word in ("better", "no difference", "worse"))
        if words:
            lines.append(f"Against {against}, {len(words)} comparisons: **{counts}**.")
    return "\n\n".join(lines) or f"Nothing to compare: {table.no_record}."


def _compare_section(table: Table, contest: Contest, comparisons: list[Comparison], notes: Footnotes) -> str:
    best = {(c.metric, c.group, c.dataset.key, c.row.label): c for c in comparisons if c.best}
    grouped, several = len(contest.groups) > 1, len(table.dataset) > 1
    beside = [table.find_column(key) for key in contest.beside]
    headers = ["Against"] * grouped + ["Prompts"] * several + COMPARE_HEADERS
    headers += [f"{column.title}: row / control" for column in beside]
    text = f"## {contest.title}\n\n{contest.text}\n"
    if {CONTROL, "few steps"} & set(contest.groups) and not PROFILES[table.profile].paper_models:
        text += f"\n{FEW_STEPS_WARNING}\n"
    for metric in contest.metrics:
        column = table.find_column(metric)
        lines = []
        for group, dataset, row in product(contest.groups, table.dataset, table.rows):
            if group not in row.controls:
                continue
            c = best.get((metric, group, dataset.key, row.label))
            start = [group] * grouped + [dataset.key] * several + [row.label]
            if c is None:
                reason = f"the row or all its controls: {table.no_record}"
                lines.append([*start, notes.mark(reason)] + [""] * (len(headers) - len(start) - 1))
                continue
            d, sides = c.difference, (c.ours, c.theirs)
            ours, theirs = (_mean(runs, dataset, column) for runs in sides)
            both = [_both(sides, dataset, column) for column in beside]
            gap = spread(d.value, d.low, d.high, column.digits, column.scale, True)
            verdict = c.verdict if c.verdict == "no difference" else f"**{c.verdict}**"
            lines.append([*start, ours, c.control.label, theirs, gap, verdict, *both])
        shown = (c for c in comparisons if c.best and c.metric == metric and c.group in contest.groups)
        summary = _summary(table, contest, shown)
        text += f"\n### {column.title}{ARROWS[column.direction]}\n\n{summary}\n\n{grid(lines, headers, LEFT)}\n"
    return text


def _measured_on(table: Table, records: Mapping[str, Record]) -> str:
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
    return f"Measured on {'; '.join(part for part in parts if part)}.{_departures(table, records)}"


def _departures(table: Table, records: Mapping[str, Record]) -> str:
    """Return a sentence that names the settings of records that differ from the suite's; empty if there are none."""
    by_run = departures(table, records)
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


def markdown(table: Table, records: Mapping[str, Record], cells: list[Cell], comparisons: list[Comparison]) -> str:
    marks = Footnotes()
    lookup = {(cell.row, cell.dataset, cell.metric): cell for cell in cells}
    note = PROFILES[table.profile].note
    head = f"{note}\n\n" if note else ""
    sections = [f"# {table.title}\n\n{head}{_measured_on(table, records)}\n\n{_facts(table, records)}"]
    sections += [_compare_section(table, contest, comparisons, marks) for contest in table.compare]
    sections += [_dataset_section(table, dataset, lookup, marks) for dataset in table.dataset]
    sections.append("\n".join(["## Notes\n", *(f"- {line}" for line in (*notes(table), *marks.lines))]) + "\n")
    return "\n".join(sections)


def render(name: str, folder: Path, profile: str = DEFAULT) -> dict[str, str]:
    """Return the texts of a table's two files by name.

    name: the name of the table.
    folder: holds the records of all profiles.
    profile: the profile to render. Without a record the result is empty, except for the default profile.
    """
    table = load_table(name, profile=profile)
    records = load_records(table, place(profile, folder))
    if not records and profile != DEFAULT:
        return {}
    comparisons = comparisons_of(table, records)
    cells = table_cells(table, records, load_paper(), comparisons)
    text = markdown(table, records, cells, comparisons)
    return {f"{name}.md": text, f"{name}.csv": csv_text(map(vars, cells), CSV_COLUMNS)}
