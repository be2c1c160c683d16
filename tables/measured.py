"""A table with all that its pages are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from benchmarks.specs.profiles import DEFAULT, place
from benchmarks.specs.record import Record
from tables.cells import Cell, Comparison, comparisons_of, table_cells
from tables.load import load_paper, load_records, load_table
from tables.spec import Table


@dataclass(frozen=True)
class Measured:
    """A table, its records, and what follows from them."""

    table: Table
    records: Mapping[str, Record]
    """The records of its rows by run id."""
    paper: pd.DataFrame
    """The printed values, from `load_paper`."""
    comparisons: list[Comparison]
    cells: list[Cell]


def measure(name: str, folder: Path, profile: str = DEFAULT) -> Measured:
    """Return the table of a name with the records of a profile.

    name: the name of the table.
    folder: holds the records of all profiles.
    profile: the profile whose records are read.
    """
    table = load_table(name, profile=profile)
    records, paper = load_records(table, place(profile, folder)), load_paper()
    comparisons = comparisons_of(table, records)
    return Measured(table, records, paper, comparisons, table_cells(table, records, paper, comparisons))
