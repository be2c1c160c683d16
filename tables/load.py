"""Reads the parts of a table: its spec and suite (TOML), the records of its runs, and the paper's printed values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.specs import record
from benchmarks.specs.files import construct, flat, merge, read_toml
from benchmarks.specs.metrics import CONVERGED, DENSE, METRICS
from benchmarks.specs.profiles import DEFAULT, PROFILES, profiled
from benchmarks.specs.record import Record
from benchmarks.specs.suite import read_suite
from dipgo.errors import DipgoError, unknown
from tables.rows import printed, read_rows
from tables.spec import Column, Contest, Dataset, Fact, Group, Otherwise, PaperColumn, Row, Table

HERE = Path(__file__).parent
SUITES = HERE.parent / "benchmarks" / "suites"
SHARED = ("profile", "limit", "seed", "protocol")
"""The fields that all runs of a table have in common."""
OF_MODEL = ("revision", "resolution", "dtype")
"""The fields that all runs of one model have in common."""
SETTINGS = ("method", "scheduler", "steps", "guidance", "params")
"""The fields that make a run the row that its label says."""
UNITS = {"T": 1e12, "h": 3600.0}
"""The paper's units in base units: MACs and seconds."""


def names(folder: Path = HERE / "specs") -> list[str]:
    """Return the names of the tables that have a spec, sorted."""
    return sorted(path.stem for path in folder.glob("*.toml"))


def columns(profile: str = DEFAULT, path: Path = HERE / "columns.toml") -> dict[str, Column]:
    """Return every column that a table may hold, by the name of its metric."""
    defined = profiled(read_toml(path), profile)
    return {
        key: construct(Column, {"key": key, **_of_metric(key), **item}, f"{path}: {key}")
        for key, item in defined.items()
    }


def _of_metric(key: str) -> dict[str, Any]:
    """Return what a column takes from the record of its metric; `NAME_diff` is the difference to the dense row."""
    metric, difference = METRICS.get(key.removesuffix("_diff")), key.endswith("_diff")
    if metric is None:
        return {}
    return {
        "digits": metric.digits,
        "direction": metric.direction,
        "scored": bool(metric.function),
        "relative": difference or bool({DENSE, CONVERGED} & metric.inputs),
        "spread": difference,
    }


@dataclass(frozen=True)
class _Parts:
    """What a table in a profile is made of."""

    where: str
    """The file of the spec, which errors name first."""
    profile: str
    spec: dict[str, Any]
    """The tables of the spec as the profile has them."""
    shared: Mapping[str, Any]
    """The tables of `shared.toml`."""
    runs: Mapping[str, Mapping[str, Any]]
    """The fields of the suite's runs by id."""

    def known(self, kind: str, name: str) -> Mapping[str, Any]:
        """Return what `shared.toml` says of a name in its tables of one kind; an error where it has no such name."""
        if name not in self.shared[kind]:
            raise DipgoError(f"{self.where}: {unknown(kind.replace('_', ' '), name, self.shared[kind])}")
        return self.shared[kind][name]

    def groups(self, suite: str) -> tuple[Group, ...]:
        """Return the groups of rows. Rows of `missing` come first in their group, then those of the suite's runs."""
        table = self.spec["name"].removeprefix("table")
        rows = read_rows(self.runs, table, self.shared, suite)
        for item in self.spec.pop("missing", []):
            fields = {**item, **printed(item.get("paper", ""), table)}
            rows.setdefault(fields.pop("group", ""), []).insert(0, construct(Row, fields, f"{self.where}: missing"))
        titles = self.spec.get("group", {})
        for title in titles:
            if title not in rows:
                raise DipgoError(f"{self.where}: {unknown('group', title, rows)}")
        return tuple(Group(titles.get(title, title), tuple(members)) for title, members in rows.items())

    def contests(self) -> tuple[Contest, ...]:
        """Return the comparisons with controls."""
        items = self.spec.get("compare", {}).items()
        return tuple(
            construct(Contest, {**item, "title": key}, f"{self.where}: compare {key!r}") for key, item in items
        )

    def datasets(self) -> tuple[Dataset, ...]:
        """Return the prompt sets of the suite's runs."""
        changes, known = self.spec.get("dataset", {}), self.shared["dataset"]
        for key in changes:
            self.known("dataset", key)
        keys = dict.fromkeys(key for run in self.runs.values() for key in run.get("prompts", []))
        defined = ({"key": key, "title": key, **known.get(key, {}), **changes.get(key, {})} for key in keys)
        return tuple(construct(Dataset, item, f"{self.where}: dataset") for item in defined)

    def facts(self) -> tuple[Fact, ...]:
        """Return the facts that have a title."""
        given = self.spec.get("fact", {}).items()
        facts = [(run, key, title) for run, titles in given for key, title in titles.items() if title]
        return tuple(Fact(run, key, title, **self.shared["fact"].get(key, {})) for run, key, title in facts)

    def paper_columns(self) -> tuple[PaperColumn, ...]:
        """Return the columns of the paper's values."""
        metrics = self.spec.get("paper_column", [])
        return tuple(PaperColumn(metric, **self.known("paper_column", metric)) for metric in metrics)

    def otherwise(self) -> tuple[Otherwise, ...]:
        """Return the blocks of rows at equal MACs."""
        items = self.spec.get("otherwise", [])
        blocks = [construct(Otherwise, item, f"{self.where}: otherwise") for item in items]
        return tuple(replace(block, runs=tuple(block.runs)) for block in blocks)

    def columns(self, *keys: str) -> tuple[tuple[Column, ...], ...]:
        """Return the columns that some lists of the spec name, a tuple for each list. A column that a list before has
        named is left out. An item that is a table has the column's name as `key`, and changes other fields of the
        column."""
        defined, taken, lists = columns(self.profile), set(), []
        for items in (self.spec.get(key, []) for key in keys):
            picked = []
            for fields in (item if isinstance(item, Mapping) else {"key": item} for item in items):
                key = fields.get("key")
                if key not in defined:
                    raise DipgoError(f"{self.where}: {unknown('column', key, defined)}")
                if key not in taken:
                    picked.append(construct(Column, {**vars(defined[key]), **fields}, self.where))
                taken.add(key)
            lists.append(tuple(picked))
        return tuple(lists)


def load_table(name: str, folder: Path = HERE / "specs", profile: str = DEFAULT, suites: Path = SUITES) -> Table:
    """Return the table of a name in a profile, from its spec in `folder`, its suite in `suites`, and `shared.toml`.

    The rows, models and prompt sets are those of the suite's runs (see `tables.rows.read_rows`). A spec holds the other
    fields of `Table`, and these tables:
    - `shown` and `csv_only` name columns of `columns.toml`. One that is in both is shown.
    - `[compare.TITLE]` is a comparison.
    - `paper_column` names the metrics of the paper that have a column.
    - `[dataset.KEY]` changes what `shared.toml` says of a prompt set.
    - `[[otherwise]]` is a block of rows at equal MACs on the first page.
    - `[fact.RUN]` holds the titles of facts by their metrics. An empty title leaves a fact out.
    - `[[missing]]` is a row without a run. It has a `group`, a `label`, a `paper`, and in `missing` the reason.
    - `[group]` holds new titles of groups, by their titles in the suite.
    - `[profile.NAME]` holds what differs in a profile.

    Raises `DipgoError` for an unknown table, profile, field, column or run, a missing field, or two rows of one label.
    """
    if name not in names(folder):
        raise unknown("table", name, names(folder))
    overlay = PROFILES[profile].overlay
    path, shared = folder / f"{name}.toml", read_toml(HERE / "shared.toml")
    base = read_toml(path)
    if overlay and overlay not in base.get("profile", {}):
        raise DipgoError(f"{path}: nothing for the {profile} profile; this table has no such profile")
    spec = {**profiled(merge(shared["spec"], base), profile), "name": name}
    suite = suites / f"{name}.toml"
    runs = read_suite(suite, profile)
    parts = _Parts(str(path), profile, spec, profiled(shared, profile), runs)
    shown, csv_only = parts.columns("shown", "csv_only")
    made = {
        "profile": profile,
        "suites": suites,
        "models": tuple(dict.fromkeys(str(run.get("model")) for run in runs.values())),
        "compare": parts.contests(),
        "dataset": parts.datasets(),
        "shown": shown,
        "csv_only": csv_only,
        "paper_column": parts.paper_columns(),
        "otherwise": parts.otherwise(),
        "group": parts.groups(str(suite)),
        "fact": parts.facts(),
    }
    table = construct(Table, {**spec, **made}, str(path))
    _validate(table, path, suite)
    return _unscored(table) if PROFILES[profile].unscored else table


def _validate(table: Table, path: Path, suite: Path) -> None:
    """Raises a `DipgoError` that names the spec or the suite if rows, columns or facts refer to something unknown."""
    runs = {row.run for row in table.rows} - {""}
    groups = {name for contest in table.compare for name in contest.groups}
    labels: set[str] = set()
    for row in table.rows:
        if row.label in labels:
            raise DipgoError(f"{suite}: two rows are called {row.label!r}; give one of them another label")
        labels.add(row.label)
        if not (row.run or row.missing):
            raise DipgoError(f"{path}: row {row.label!r} is missing; say why in `missing`")
        controls = [run for names in row.controls.values() for run in names]
        if len(set(controls)) < len(controls):
            raise DipgoError(f"{suite}: row {row.label!r} names a control twice; drop one")
        for name in row.controls:
            if name not in groups:
                raise DipgoError(f"{suite}: row {row.label!r}: {unknown('group of controls', name, groups)}")
        for run in [*controls, row.baseline] if row.run else []:
            if run not in runs:
                raise DipgoError(f"{suite}: row {row.label!r}: {unknown('run', run, runs)}")
    for fact in table.fact:
        if fact.run not in runs:
            raise DipgoError(f"{path}: {unknown('run', fact.run, runs)}")
    for run in (run for block in table.otherwise for run in block.runs):
        if run not in runs:
            raise DipgoError(f"{path}: otherwise: {unknown('run', run, runs)}")
    known = {column.key for column in table.column}
    difference = (table.difference, f"{table.difference}_diff") if table.difference else ()
    contested = [key for contest in table.compare for key in (*contest.metrics, *contest.beside)]
    for key in (*difference, *contested):
        if key not in known:
            raise DipgoError(f"{path}: {unknown('column', key, known)}")
    printed = {column.paper for column in table.column} - {""}
    for column in table.paper_column:
        if column.metric not in printed:
            raise DipgoError(f"{path}: {unknown('paper metric', column.metric, printed)}")


def _unscored(table: Table) -> Table:
    """Return the table without scores of pictures, for a profile that has none. All other columns are shown."""
    shown = tuple(column for column in table.column if not column.scored)
    return replace(table, shown=shown, csv_only=(), difference="", compare=())


def load_records(table: Table, folder: Path) -> dict[str, Record]:
    """Return the records of a table's rows by run id. Runs without a record are left out.

    Raises `DipgoError` when a record cannot stand in the table: its model is not one of the table's models, or its
    weights, seed, number of pictures, profile or reference differ from those of the other records.
    """
    records: dict[str, Record] = {}
    for run in (run for row in table.rows for run in row.runs):
        if (published := record.find(folder, run)) is not None:
            records[run] = published
    for item in records.values():
        model = item.spec["model"]
        if model not in table.models:
            raise DipgoError(f"{item.file} cannot stand in {table.name}: {unknown('model', model, table.models)}")
    check_alike(records)
    return records


def check_alike(records: Mapping[str, Record]) -> None:
    """Raise a `DipgoError` for records that cannot stand in one table: the weights, seed, number of pictures, profile
    or reference of one differ from those of the others.

    records: the records by run id.
    """
    first = next(iter(records.values()), None)
    of_model: dict[str, Record] = {}
    for item in records.values():
        same_model = of_model.setdefault(item.spec["model"], item)
        for key, earlier in [*((key, same_model) for key in OF_MODEL), *((key, first) for key in SHARED)]:
            value, expected = item.spec.get(key), earlier.spec.get(key)
            if value != expected:
                raise DipgoError(
                    f"{earlier.file} has {key} {expected!r}, {item.file} {value!r}: "
                    "they cannot stand in one table; run one of them again"
                )
        reference = records.get(item.spec["reference"])
        if reference is not None and reference.digest not in item.spec["needs"]:
            raise DipgoError(f"{item.file} was measured against another run than {reference.file}; run it again")


def departures(table: Table, records: Mapping[str, Record]) -> dict[str, dict[str, Any]]:
    """Return the settings in which a record differs from the suite's run, and so from its row's label, by run id."""
    return other_settings(read_suite(table.suites / f"{table.name}.toml", table.profile), records)


def other_settings(rows: Mapping[str, Mapping[str, Any]], records: Mapping[str, Record]) -> dict[str, dict[str, Any]]:
    """Return the settings in which a record differs from a suite's run, by run id, without runs that do not differ.

    rows: the fields of the suite's runs by id, from `read_suite`.
    records: the records by run id.
    """
    changes = {}
    for run, item in records.items():
        asked = flat({key: rows[run][key] for key in SETTINGS if key in rows.get(run, {})})
        actual = flat({key: item.spec[key] for key in SETTINGS})
        changes[run] = {key: actual.get(key) for key, value in asked.items() if actual.get(key) != value}
    return {run: changed for run, changed in changes.items() if changed}


def load_paper(path: Path = HERE / "paper.csv") -> pd.DataFrame:
    """Return the values that the paper prints, in base units (MACs, seconds), one value a row."""
    paper = pd.read_csv(path, dtype=str, keep_default_na=False)
    paper["value"] = paper["value"].astype(float) * paper["unit"].map(UNITS).fillna(1.0)
    return paper


def paper_value(paper: pd.DataFrame, row: Row, dataset: str, metric: str) -> float | None:
    """Return the value that the paper prints for a row on one of its prompt sets; None if it prints none."""
    if row.paper is None or not metric:
        return None
    wanted = {**row.paper, "dataset": dataset, "metric": metric}
    values = paper.loc[(paper[list(wanted)] == pd.Series(wanted)).all(axis=1), "value"]
    if len(values) > 1:
        raise DipgoError(f"row {row.label!r} picks {len(values)} printed values of {metric!r}; name its group")
    return float(values.iloc[0]) if len(values) else None
