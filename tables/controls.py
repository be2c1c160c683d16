"""The page of a table that holds every row against the best of its controls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product

from benchmarks.specs.profiles import PROFILES
from benchmarks.specs.record import Record
from tables.cells import Comparison, row_cell
from tables.format import ARROWS, LEFT, Footnotes, deviation, grid, number, spread
from tables.notes import FEW_STEPS_WARNING
from tables.spec import CONTROL, Column, Contest, Dataset, Table

COMPARE_HEADERS = ["Row", "Its value", "Best control", "Control's value", "Row − control [95 %]", "Verdict"]


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


def controls(table: Table, comparisons: list[Comparison]) -> str:
    """Return the markdown of the comparisons, which are those of `comparisons_of`."""
    marks = Footnotes()
    sections = [f"# {table.title}, against its controls\n"]
    sections += [_compare_section(table, contest, comparisons, marks) for contest in table.compare]
    if marks.lines:
        sections.append("\n".join(f"- {line}" for line in marks.lines) + "\n")
    return "\n".join(sections)
