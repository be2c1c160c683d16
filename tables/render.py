"""Renders a table as CSV and markdown from its records. The same records give the same bytes."""

from __future__ import annotations

from pathlib import Path

from benchmarks.specs.profiles import DEFAULT
from tables.controls import controls
from tables.format import csv_text
from tables.front import front
from tables.full import full
from tables.measured import Measured, measure

CSV_COLUMNS = ["row", "dataset", "metric", "value", "paper", "n", "low", "high", "sd", "seeds", "verdict", "run"]


def render(name: str, folder: Path, profile: str = DEFAULT) -> dict[str, str]:
    """Return the texts of a table's files by name: its first page, all rows, the comparisons with controls, the CSV.

    name: the name of the table.
    folder: holds the records of all profiles.
    profile: the profile to render. Without a record the result is empty, except for the default profile.
    """
    measured = measure(name, folder, profile)
    table, records, cells = measured.table, measured.records, measured.cells
    if not records and profile != DEFAULT:
        return {}
    files = {f"{name}.md": front(measured)}
    files[f"{name}_full.md"] = full(table, records, cells)
    if table.compare:
        files[f"{name}_controls.md"] = controls(table, measured.comparisons)
    return {**files, f"{name}.csv": csv_of(measured)}


def csv_of(measured: Measured) -> str:
    """Return the CSV of a table."""
    return csv_text(map(vars, measured.cells), CSV_COLUMNS)
