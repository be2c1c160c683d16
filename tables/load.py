"""A table as data: its spec (TOML), the paper's printed values (one CSV) and the records of its runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks import record
from benchmarks.record import Record
from benchmarks.spec import BenchmarkError, construct, read_toml, unknown

HERE = Path(__file__).parent
SHARED = ("profile", "resolution", "limit", "seed")  # what the runs of one table have in common
UNITS = {"T": 1e12, "h": 3600.0}  # the paper's units in base units: MACs, seconds


@dataclass(frozen=True)
class Column:
    """A metric of every row, as `columns.toml` defines it. `scale` turns base units into the shown ones;
    `direction` is "up" or "down" where one end is better. `spread`: show low and high. `relative`: measured against
    the baseline, which has none itself. `paper`: the paper's name of the metric. `note` explains it."""

    key: str
    title: str
    digits: int = 2
    scale: float = 1.0
    direction: str = ""
    spread: bool = False
    relative: bool = False
    paper: str = ""
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
    `controls`: the runs of the rows that it is held against."""

    label: str
    run: str = ""
    seeds: tuple[str, ...] = ()
    missing: str = ""
    paper: Mapping[str, str] | None = None
    own: bool = False
    controls: tuple[str, ...] = ()

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
    """A prompt set; `paper` is the one whose printed values stand beside it, where there is one."""

    key: str
    title: str
    paper: str = ""


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
class Table:
    """`models`: the models whose records may stand in it. `shown` columns are in the markdown, `csv_only` ones not.
    `difference` is the metric compared with the baseline, `compare` those compared with the controls. Without a
    `baseline` every group names its own."""

    name: str
    title: str
    models: tuple[str, ...]
    difference: str
    compare: tuple[str, ...]
    compare_title: str
    compare_text: str
    paper_model: str
    no_record: str
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

    def baseline_of(self, row: Row) -> str:
        """The run that a row is measured against."""
        return next(group.baseline for group in self.group if row in group.row) or self.baseline

    def find_row(self, run: str) -> Row:
        return next(row for row in self.rows if row.run == run)

    def find_column(self, key: str) -> Column:
        return next(column for column in self.column if column.key == key)


def names(folder: Path = HERE / "specs") -> list[str]:
    """The tables that have a spec."""
    return sorted(path.stem for path in folder.glob("*.toml"))


def _columns(path: Path = HERE / "columns.toml") -> dict[str, Column]:
    return {key: construct(Column, {"key": key, **item}, f"{path}: {key}") for key, item in read_toml(path).items()}


def load_table(name: str, folder: Path = HERE / "specs") -> Table:
    """A table's spec. Raises `BenchmarkError` for an unknown table, field, column or run, a missing field, or
    two rows of one label."""
    if name not in names(folder):
        raise unknown("table", name, names(folder))
    path = folder / f"{name}.toml"
    data: dict[str, Any] = {"name": name, **read_toml(path)}
    defined = _columns()
    for key in ("shown", "csv_only"):
        for name in data.get(key, []):
            if name not in defined:
                raise BenchmarkError(f"{path}: {unknown('column', name, defined)}")
        data[key] = tuple(defined[name] for name in data.get(key, []))
    kinds = {"dataset": Dataset, "paper_column": PaperColumn, "group": Group, "fact": Fact}
    for key, cls in kinds.items():
        items = data.get(key, [])
        if cls is Group:
            items = [
                {**item, "row": tuple(construct(Row, row, f"{path}: row") for row in item.get("row", []))}
                for item in items
            ]
        data[key] = tuple(construct(cls, item, f"{path}: {key}") for item in items)
    table = construct(Table, data, str(path))
    labels = [row.label for row in table.rows]
    runs = {row.run for row in table.rows} - {""}
    if doubled := {label for label in labels if labels.count(label) > 1}:
        raise BenchmarkError(f"{path}: two rows are called {min(doubled)!r}; rename one")
    for row in table.rows:
        if bool(row.run) == bool(row.missing):
            raise BenchmarkError(f"{path}: row {row.label!r} needs either `run` or `missing` (the reason)")
        if row.seeds and len(set(row.runs)) <= len(row.seeds):
            raise BenchmarkError(f"{path}: row {row.label!r} names a run twice, or `seeds` without `run`; repair it")
    for group in table.group:
        if not (group.baseline or table.baseline):
            raise BenchmarkError(f"{path}: group {group.title!r} has no baseline; name one for it or for the table")
    asked = [table.baseline_of(row) for row in table.rows] + [fact.run for fact in table.fact]
    for run in asked + [control for row in table.rows for control in row.controls]:
        if run not in runs:
            raise BenchmarkError(f"{path}: {unknown('run', run, runs)}")
    columns = {column.key for column in table.column}
    for key in (table.difference, f"{table.difference}_diff", *table.compare):
        if key not in columns:
            raise BenchmarkError(f"{path}: {unknown('column', key, columns)}")
    printed = {column.paper for column in table.column} - {""}
    for column in table.paper_column:
        if column.metric not in printed:
            raise BenchmarkError(f"{path}: {unknown('paper metric', column.metric, printed)}")
    return table


def load_records(table: Table, folder: Path) -> dict[str, Record]:
    """The records of a table's rows, by run id; a run without one is not in it.

    Raises `BenchmarkError` when two records cannot stand in one table: a model that is not the table's, other
    weights of one model, another seed, size, profile or reference.
    """
    records: dict[str, Record] = {}
    for run in (run for row in table.rows for run in row.runs):
        found = record.find(folder, run)
        if found is not None:
            records[run] = found
    first = next(iter(records.values()), None)
    of_model: dict[str, Record] = {}
    for other in records.values():
        if other.spec["model"] not in table.models:
            problem = unknown("model", other.spec["model"], table.models)
            raise BenchmarkError(f"{other.file} cannot stand in {table.name}: {problem}")
        same = of_model.setdefault(other.spec["model"], other)
        for key, twin in [("revision", same), *((key, first) for key in SHARED)]:
            if other.spec[key] != twin.spec[key]:
                raise BenchmarkError(
                    f"{twin.file} has {key} {twin.spec[key]!r}, {other.file} {other.spec[key]!r}: "
                    "they cannot stand in one table; run one of them again"
                )
        reference = records.get(other.spec["reference"])
        if reference is not None and reference.digest not in other.spec["needs"]:
            raise BenchmarkError(f"{other.file} was measured against another run than {reference.file}; run it again")
    return records


def load_paper(path: Path = HERE / "paper.csv") -> pd.DataFrame:
    """The paper's printed values in base units (MACs, seconds), one value a row."""
    paper = pd.read_csv(path, dtype=str, keep_default_na=False)
    paper["value"] = paper["value"].astype(float) * paper["unit"].map(UNITS).fillna(1.0)
    return paper


def paper_value(paper: pd.DataFrame, row: Row, dataset: str, metric: str) -> float | None:
    """What the paper prints for a row; None where it prints nothing."""
    if row.paper is None or not metric:
        return None
    wanted = {**row.paper, "dataset": dataset, "metric": metric}
    hits = paper.loc[(paper[list(wanted)] == pd.Series(wanted)).all(axis=1), "value"]
    if len(hits) > 1:
        raise BenchmarkError(f"row {row.label!r} picks {len(hits)} printed values of {metric!r}; name its group")
    return float(hits.iloc[0]) if len(hits) else None
