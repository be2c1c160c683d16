"""The parts of a table: its columns, its rows and its prompt sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.specs.profiles import DEFAULT

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
    """Which end is better, "up" or "down"; empty if neither is."""
    spread: bool = False
    """Whether cells show the low and high end of their interval."""
    relative: bool = False
    """Whether the metric compares with the baseline, so that the baseline has no value."""
    scored: bool = False
    """Whether the metric scores pictures. Pictures of random weights are not scored."""
    paper: str = ""
    """The paper's name of the metric; empty if the paper has no such metric."""
    scheduled: bool = False
    """Whether the metric follows from the schedule. The paper publishes no schedule of its pruned rows."""
    agrees: float = 0.02
    """A value of the paper's own model agrees with the printed one within this relative distance."""
    keeps: float = 0.01
    """A score that is worse than dense's by at most this share of it counts as kept."""
    collapses: float = 0.1
    """A score that is worse than dense's by more than this share of it counts as collapsed."""
    apart: str = ""
    """Why our value and the printed one cannot be compared; empty if they can."""
    note: str = ""
    """What a reader must know about the column. It stands below the table."""


@dataclass(frozen=True)
class PaperColumn:
    """A column of the first page that shows the values that the paper prints."""

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
    """Why the row has no run."""
    paper: Mapping[str, str] | None = None
    """The columns of `paper.csv` that pick the row's printed values; None if the paper has no such row."""
    added: bool = False
    """Whether the paper's table lacks the row."""
    controls: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The runs of the rows that this row is compared with, by the name of their group."""
    baseline: str = ""
    """The reference of the row's run, or the run itself if it has none."""

    @property
    def runs(self) -> tuple[str, ...]:
        """The ids of all runs of the row; empty for a missing row."""
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
    """The name of the prompt set in the suites and records."""
    title: str
    paper: str = ""
    """The paper's prompt set whose printed values are shown beside ours; empty if there is none."""
    size: int = 0
    """The number of pictures of a run in the paper; 0 if the paper does not use this set."""


@dataclass(frozen=True)
class Fact:
    """One number of one run, which has a line above the table: "{title}: {value}{unit}"."""

    run: str
    key: str
    """The name of the metric."""
    title: str
    digits: int = 2
    scale: float = 1.0
    """The factor that turns base units into the shown ones."""
    unit: str = ""


@dataclass(frozen=True)
class Contest:
    """A section of the markdown that compares every row with the best of its controls."""

    title: str
    text: str
    metrics: tuple[str, ...]
    """The metrics that are compared, one after another."""
    groups: tuple[str, ...] = (CONTROL,)
    """Rows are compared with the best control of each of these groups."""
    beside: tuple[str, ...] = ("macs_full",)
    """Further columns that are shown for the row and for its control."""


@dataclass(frozen=True)
class Otherwise:
    """A block of the first page: rows that cost as many MACs as a pruned row, which is the first of them."""

    title: str
    runs: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table in one profile."""

    name: str
    profile: str
    suites: Path
    """The folder of the table's suite, which has the table's name."""
    title: str
    models: tuple[str, ...]
    """The models whose records may stand in the table."""
    difference: str
    """The metric whose difference from the baseline has a column; empty if there is none."""
    compare: tuple[Contest, ...]
    paper_model: str
    """The name of the paper's model in the headers of the paper's columns."""
    notes: tuple[str, ...]
    dataset: tuple[Dataset, ...]
    shown: tuple[Column, ...]
    """The columns of the markdown and the CSV."""
    csv_only: tuple[Column, ...]
    """The columns that only the CSV has."""
    paper_column: tuple[PaperColumn, ...]
    group: tuple[Group, ...]
    fact: tuple[Fact, ...] = ()
    otherwise: tuple[Otherwise, ...] = ()

    @property
    def column(self) -> tuple[Column, ...]:
        return (*self.shown, *self.csv_only)

    @property
    def rows(self) -> list[Row]:
        return [row for group in self.group for row in group.row]

    @property
    def baseline(self) -> str:
        """The baseline of the first row that has a run."""
        return next(row.baseline for row in self.rows if row.run)

    @property
    def compared(self) -> list[str]:
        """The metrics in which rows are compared with controls that are in no named group."""
        contests = (contest for contest in self.compare if CONTROL in contest.groups)
        return list(dict.fromkeys(metric for contest in contests for metric in contest.metrics))

    @property
    def no_record(self) -> str:
        """The reason for a run without a record, with the command that makes it."""
        profile = "" if self.profile == DEFAULT else f" -- --profile {self.profile}"
        return f"not measured yet, run `nox -s reproduce-{self.name}{profile}`"

    def find_row(self, run: str) -> Row:
        return next(row for row in self.rows if row.run == run)

    def find_column(self, key: str) -> Column:
        return next(column for column in self.column if column.key == key)
