"""What a table is: its columns, its rows and its prompt sets. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.specs.run import PROFILES

EMBEDDED = PROFILES[0]
CONTROL = "control"
"""The group of a row's controls where the suite names no groups."""


@dataclass(frozen=True)
class Column:
    """A metric of every row, as `columns.toml` defines it."""

    key: str
    """The metric's name in the records."""
    title: str
    digits: int = 2
    scale: float = 1.0
    """The factor that turns base units into the shown ones."""
    direction: str = ""
    """Which end is better, "up" or "down"; empty where neither is."""
    spread: bool = False
    """Whether the cell shows its low and high end."""
    relative: bool = False
    """Whether the metric is measured against the baseline, which then has none itself."""
    scored: bool = False
    """Whether the metric is a score of pictures, so that random weights have none."""
    paper: str = ""
    """The paper's name of the metric; empty where the paper has none."""
    scheduled: bool = False
    """Whether the metric follows from the schedule. The paper publishes no schedule of its pruned rows."""
    agrees: float = 0.02
    """A value of the paper's own model agrees with the printed one within this relative distance."""
    apart: str = ""
    """What else our value and the printed one differ in, so that they cannot be compared; empty if nothing."""
    note: str = ""
    """What a reader must know of the column. It stands under the table."""


@dataclass(frozen=True)
class PaperColumn:
    """A column of the markdown that shows the values that the paper prints."""

    metric: str
    """The paper's name of the metric."""
    title: str
    digits: int = 2
    scale: float = 1.0
    """The factor that turns base units into the shown ones."""


@dataclass(frozen=True)
class Row:
    """A row of a table: one run of the suite, or several trainings of it."""

    label: str
    run: str = ""
    """The id of the run; empty where `missing` says why there is none."""
    seeds: tuple[str, ...] = ()
    """The ids of the runs that are `run` trained again with other seeds. The row shows the mean of all of them."""
    missing: str = ""
    paper: Mapping[str, str] | None = None
    """What picks the row's printed values out of `paper.csv`, by column; None where the paper has no such row."""
    own: bool = False
    """Whether the paper's table lacks the row."""
    controls: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The runs of the rows that this row is held against, by the name of their group."""
    baseline: str = ""
    """The run that the row is measured against: the reference of its run, or the run itself."""

    @property
    def runs(self) -> tuple[str, ...]:
        """`run` and `seeds`; empty for a missing row."""
        return (self.run, *self.seeds) if self.run else ()


@dataclass(frozen=True)
class Group:
    """Rows under one title."""

    title: str
    row: tuple[Row, ...]


@dataclass(frozen=True)
class Dataset:
    """A prompt set."""

    key: str
    """Its name in the suites and records."""
    title: str
    paper: str = ""
    """The paper's prompt set whose printed values stand beside it; empty if there is none."""
    size: int = 0
    """How many pictures a run takes of it in the paper; 0 if it is not the paper's set."""


@dataclass(frozen=True)
class Fact:
    """One number of one run, shown as a line: "{title}: {value}{unit}"."""

    run: str
    key: str
    title: str
    digits: int = 2
    scale: float = 1.0
    unit: str = ""


@dataclass(frozen=True)
class Contest:
    """A section of the markdown that holds every row against the best of its controls."""

    title: str
    text: str
    metrics: tuple[str, ...]
    """Each of these metrics has a comparison of its own."""
    groups: tuple[str, ...] = (CONTROL,)
    """Rows are held against the best control of each of these groups."""
    beside: tuple[str, ...] = ("macs_full",)
    """The columns that are shown of the row and of its control."""


@dataclass(frozen=True)
class Table:
    """A table in one profile."""

    name: str
    profile: str
    title: str
    models: tuple[str, ...]
    """The models whose records may stand in it."""
    difference: str
    """The metric whose difference to the baseline has a column; empty if there is none."""
    compare: tuple[Contest, ...]
    paper_model: str
    """What the headers of the paper's columns call its model."""
    notes: tuple[str, ...]
    dataset: tuple[Dataset, ...]
    shown: tuple[Column, ...]
    """The columns of the markdown and the CSV."""
    csv_only: tuple[Column, ...]
    """The columns of the CSV alone."""
    paper_column: tuple[PaperColumn, ...]
    group: tuple[Group, ...]
    fact: tuple[Fact, ...] = ()

    @property
    def column(self) -> tuple[Column, ...]:
        return (*self.shown, *self.csv_only)

    @property
    def rows(self) -> list[Row]:
        return [row for group in self.group for row in group.row]

    @property
    def baseline(self) -> str:
        """The run that the first row is measured against."""
        return next(row.baseline for row in self.rows if row.run)

    @property
    def compared(self) -> list[str]:
        """The metrics by which rows are held against the controls that are in no named group."""
        contests = (contest for contest in self.compare if CONTROL in contest.groups)
        return list(dict.fromkeys(metric for contest in contests for metric in contest.metrics))

    @property
    def no_record(self) -> str:
        """Why a run has no record, with the way out."""
        profile = "" if self.profile == EMBEDDED else f" -- --profile {self.profile}"
        return f"not measured yet, run `nox -s reproduce-{self.name}{profile}`"

    def find_row(self, run: str) -> Row:
        return next(row for row in self.rows if row.run == run)

    def find_column(self, key: str) -> Column:
        return next(column for column in self.column if column.key == key)
