"""Renders a table as CSV and markdown from its records. The same records give the same bytes."""

from __future__ import annotations

from pathlib import Path

from benchmarks.specs.profiles import DEFAULT, place
from tables.cells import comparisons_of, table_cells
from tables.controls import controls
from tables.format import csv_text
from tables.front import front
from tables.full import full
from tables.load import load_paper, load_records, load_table

CSV_COLUMNS = ["row", "dataset", "metric", "value", "paper", "n", "low", "high", "sd", "seeds", "verdict", "run"]


def render(name: str, folder: Path, profile: str = DEFAULT) -> dict[str, str]:
    """Return the texts of a table's files by name: its first page, all rows, the comparisons with controls, the CSV.

    name: the name of the table.
    folder: holds the records of all profiles.
    profile: the profile to render. Without a record the result is empty, except for the default profile.
    """
    table = load_table(name, profile=profile)
    records = load_records(table, place(profile, folder))
    if not records and profile != DEFAULT:
        return {}
    paper, comparisons = load_paper(), comparisons_of(table, records)
    cells = table_cells(table, records, paper, comparisons)
    files = {f"{name}.md": front(table, records, cells, comparisons, paper)}
    files[f"{name}_full.md"] = full(table, records, cells)
    if table.compare:
        files[f"{name}_controls.md"] = controls(table, comparisons)
    return {**files, f"{name}.csv": csv_text(map(vars, cells), CSV_COLUMNS)}
