"""What a table is: its columns, rows and prompt sets, as the specs (TOML) describe them. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.specs.run import PROFILES

EMBEDDED = PROFILES[0]
CONTROL = "control"  # the group of a row's controls where they are not named in groups


@dataclass(frozen=True)
class Column:
    """A metric of every row, as `columns.toml` defines it. `scale` turns base units into the shown ones;
    `direction` is "up" or "down" where one end is better. `spread`: show low and high. `relative`: measured against
    the baseline, which has none itself. `scored`: a score of pictures, so that random weights have none. `note`
    explains it.

    `paper`: the paper's name of the metric. A value of the paper's own model agrees with the printed one within the
    relative distance `agrees`, unless `apart` says what else the two differ in. `scheduled`: the schedule decides it,
    and the paper publishes none of its pruned rows.
    """

    key: str
    title: str
    digits: int = 2
    scale: float = 1.0
    direction: str = ""
    spread: bool = False
    relative: bool = False
    scored: bool = False
    paper: str = ""
    scheduled: bool = False
    agrees: float = 0.02
    apart: str = ""
    note: str = ""


@dataclass(frozen=True)
class PaperColumn:
    """A column of the markdown that shows the paper's own values; `scale` as in `Column`."""

    metric: str
    title: str
    digits: int = 2
    scale: float = 1.0


@dataclass(frozen=True)
class Row:
    """`run` is a run's id, or `missing` says why there is none. `seeds`: ids of runs that are `run` trained again with
    other seeds. `paper` picks the row's values out of paper.csv by column. `own`: not a row of the paper's table.
    `controls`: the runs of the rows that it is held against, by group."""

    label: str
    run: str = ""
    seeds: tuple[str, ...] = ()
    missing: str = ""
    paper: Mapping[str, str] | None = None
    own: bool = False
    controls: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def runs(self) -> tuple[str, ...]:
        """`run` and `seeds`, whose mean is the row's value; empty for a missing one."""
        return (self.run, *self.seeds) if self.run else ()


@dataclass(frozen=True)
class Group:
    """`baseline`: the run that the group's rows are measured against, where it is not the table's."""

    title: str
    row: tuple[Row, ...]
    baseline: str = ""


@dataclass(frozen=True)
class Dataset:
    """A prompt set; `paper` is the one whose printed values stand beside it, where there is one, and `size` how many
    pictures a run of it takes in the paper (0: another set than the paper's)."""

    key: str
    title: str
    paper: str = ""
    size: int = 0


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
    """A section of the markdown: rows that have controls in one of the `groups`, each held against the best of a group
    by every one of the `metrics`. The columns `beside` are shown of both."""

    title: str
    text: str
    metrics: tuple[str, ...]
    groups: tuple[str, ...] = (CONTROL,)
    beside: tuple[str, ...] = ("macs_full",)


@dataclass(frozen=True)
class Table:
    """`models`: the models whose records may stand in it. `shown` columns are in the markdown, `csv_only` ones not.
    `difference` is the metric compared with the baseline, if any; `compare` says what is compared with the controls.
    Without a `baseline` every group names its own."""

    name: str
    profile: str
    title: str
    models: tuple[str, ...]
    difference: str
    compare: tuple[Contest, ...]
    paper_model: str
    notes: tuple[str, ...]
    dataset: tuple[Dataset, ...]
    shown: tuple[Column, ...]
    csv_only: tuple[Column, ...]
    paper_column: tuple[PaperColumn, ...]
    group: tuple[Group, ...]
    fact: tuple[Fact, ...] = ()
    baseline: str = ""

    @property
    def column(self) -> tuple[Column, ...]:
        return (*self.shown, *self.csv_only)

    @property
    def rows(self) -> list[Row]:
        return [row for group in self.group for row in group.row]

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

    def baseline_of(self, row: Row) -> str:
        """The run that a row is measured against."""
        return next(group.baseline for group in self.group if row in group.row) or self.baseline

    def find_row(self, run: str) -> Row:
        return next(row for row in self.rows if row.run == run)

    def find_column(self, key: str) -> Column:
        return next(column for column in self.column if column.key == key)
