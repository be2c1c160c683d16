"""A table's data: its spec (TOML), the paper's printed values (one CSV) and the records of its runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.specs import record
from benchmarks.specs.files import construct, merge, read_toml
from benchmarks.specs.record import Record
from benchmarks.specs.run import OVERLAYS, PROFILES, profiled
from benchmarks.specs.suite import read_suite
from dipgo.errors import DipgoError, unknown
from tables.spec import CONTROL, EMBEDDED, Column, Contest, Dataset, Fact, Group, PaperColumn, Row, Table

HERE = Path(__file__).parent
SUITES = HERE.parent / "benchmarks" / "suites"
RANDOM = "random-weights"
SHARED = ("profile", "limit", "seed", "protocol")  # what the runs of one table have in common
OF_MODEL = ("revision", "resolution", "dtype")  # and those of one model
SETTINGS = ("method", "scheduler", "steps", "guidance", "params")  # what makes a run the row that its label says
UNITS = {"T": 1e12, "h": 3600.0}  # the paper's units in base units: MACs, seconds


def names(folder: Path = HERE / "specs") -> list[str]:
    """The tables that have a spec."""
    return sorted(path.stem for path in folder.glob("*.toml"))


def folder_of(profile: str, base: Path) -> Path:
    """Where in `base` the files of a profile lie: the embedded ones in itself."""
    return base if profile == EMBEDDED else base / profile


def columns(profile: str = EMBEDDED, path: Path = HERE / "columns.toml") -> dict[str, Column]:
    """Every metric that a table may hold, by its name."""
    defined = profiled(read_toml(path), profile)
    return {key: construct(Column, {"key": key, **item}, f"{path}: {key}") for key, item in defined.items()}


def _pick(names: list[Any], defined: Mapping[str, Column], where: str) -> tuple[Column, ...]:
    """Columns by name; a table instead of a name has the name as `key`, and what differs in this table's column."""
    picked = []
    for item in names:
        fields = item if isinstance(item, Mapping) else {"key": item}
        if fields.get("key") not in defined:
            raise DipgoError(f"{where}: {unknown('column', fields.get('key'), defined)}")
        picked.append(construct(Column, {**vars(defined[fields["key"]]), **fields}, where))
    return tuple(picked)


def _read(path: Path, profile: str) -> dict[str, Any]:
    """A spec's tables as a profile has them; `[profile.NAME.group.TITLE]` holds what differs in a group, and so does
    `[profile.NAME.compare.TITLE]` in a comparison."""
    base = read_toml(path)
    data = profiled(base, profile)
    if profile != EMBEDDED and OVERLAYS.get(profile, profile) not in base.get("profile", {}):
        raise DipgoError(f"{path}: nothing for the {profile} profile; this table has no such profile")
    for key in ("group", "compare"):
        items = {item.get("title", ""): item for item in base.get(key, [])}
        if isinstance(data.get(key), Mapping):
            for title in data[key]:
                if title not in items:
                    raise DipgoError(f"{path}: {unknown(key, title, items)}")
            data[key] = [merge(item, data[key].get(title, {})) for title, item in items.items()]
    return data


def _row(fields: Mapping[str, Any], where: str) -> Row:
    """Controls that stand in no group are one."""
    controls = fields.get("controls", {})
    controls = controls if isinstance(controls, Mapping) else {CONTROL: controls}
    return construct(Row, {**fields, "controls": {name: tuple(runs) for name, runs in controls.items()}}, where)


def load_table(name: str, folder: Path = HERE / "specs", profile: str = EMBEDDED) -> Table:
    """A table's spec. Raises `DipgoError` for an unknown table, profile, field, column or run, a missing field,
    or two rows of one label."""
    if name not in names(folder):
        raise unknown("table", name, names(folder))
    if profile not in PROFILES:
        raise unknown("profile", profile, PROFILES)
    path = folder / f"{name}.toml"
    data: dict[str, Any] = {"name": name, "profile": profile, **_read(path, profile)}
    for key in ("shown", "csv_only"):
        data[key] = _pick(data.get(key, []), columns(profile), str(path))
    kinds = {"dataset": Dataset, "paper_column": PaperColumn, "compare": Contest, "group": Group, "fact": Fact}
    for key, cls in kinds.items():
        items = data.get(key, [])
        if cls is Group:
            items = [{**item, "row": tuple(_row(row, f"{path}: row") for row in item.get("row", []))} for item in items]
        data[key] = tuple(construct(cls, item, f"{path}: {key}") for item in items)
    table = construct(Table, data, str(path))
    _validate(table, path)
    return _unscored(table) if profile == RANDOM else table


def _validate(table: Table, path: Path) -> None:
    labels = [row.label for row in table.rows]
    runs = {row.run for row in table.rows} - {""}
    if doubled := {label for label in labels if labels.count(label) > 1}:
        raise DipgoError(f"{path}: two rows are called {min(doubled)!r}; rename one")
    for row in table.rows:
        if bool(row.run) == bool(row.missing):
            raise DipgoError(f"{path}: row {row.label!r} needs either `run` or `missing` (the reason)")
        if row.seeds and len(set(row.runs)) <= len(row.seeds):
            raise DipgoError(f"{path}: row {row.label!r} names a run twice, or `seeds` without `run`; repair it")
    for group in table.group:
        if not (group.baseline or table.baseline):
            raise DipgoError(f"{path}: group {group.title!r} has no baseline; name one for it or for the table")
    asked = [table.baseline_of(row) for row in table.rows] + [fact.run for fact in table.fact]
    groups = {name for contest in table.compare for name in contest.groups}
    for row in table.rows:
        controls = [run for runs in row.controls.values() for run in runs]
        if len(set(controls)) < len(controls):
            raise DipgoError(f"{path}: row {row.label!r} names a control twice; drop one")
        for name in row.controls:
            if name not in groups:
                raise DipgoError(f"{path}: row {row.label!r}: {unknown('group of controls', name, groups)}")
        asked += controls
    for run in asked:
        if run not in runs:
            raise DipgoError(f"{path}: {unknown('run', run, runs)}")
    own = {column.key for column in table.column}
    difference = (table.difference, f"{table.difference}_diff") if table.difference else ()
    contested = [key for contest in table.compare for key in (*contest.metrics, *contest.beside)]
    for key in (*difference, *contested):
        if key not in own:
            raise DipgoError(f"{path}: {unknown('column', key, own)}")
    printed = {column.paper for column in table.column} - {""}
    for column in table.paper_column:
        if column.metric not in printed:
            raise DipgoError(f"{path}: {unknown('paper metric', column.metric, printed)}")


def _unscored(table: Table) -> Table:
    """The table without what only scored pictures give: random weights show what the rest costs, all of it."""
    shown = tuple(column for column in table.column if not column.scored)
    return replace(table, shown=shown, csv_only=(), difference="", compare=())


def load_records(table: Table, folder: Path) -> dict[str, Record]:
    """The records of a table's rows, by run id; a run without one is not in it.

    Raises `DipgoError` when two records cannot stand in one table: a model that is not the table's, other
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
            raise DipgoError(f"{other.file} cannot stand in {table.name}: {problem}")
        same = of_model.setdefault(other.spec["model"], other)
        for key, twin in [*((key, same) for key in OF_MODEL), *((key, first) for key in SHARED)]:
            ours, theirs = other.spec.get(key), twin.spec.get(key)
            if ours != theirs:
                raise DipgoError(
                    f"{twin.file} has {key} {theirs!r}, {other.file} {ours!r}: "
                    "they cannot stand in one table; run one of them again"
                )
        reference = records.get(other.spec["reference"])
        if reference is not None and reference.digest not in other.spec["needs"]:
            raise DipgoError(f"{other.file} was measured against another run than {reference.file}; run it again")
    return records


def departures(table: Table, records: Mapping[str, Record]) -> dict[str, dict[str, Any]]:
    """By run, the settings in which its record is not the run of the suite, and so not the row that its label says."""
    rows = read_suite(SUITES / f"{table.name}.toml", table.profile)
    found = {}
    for run, each in records.items():
        asked = flat({key: rows[run][key] for key in SETTINGS if key in rows.get(run, {})})
        had = flat({key: each.spec[key] for key in SETTINGS})
        found[run] = {key: had.get(key) for key, value in asked.items() if had.get(key) != value}
    return {run: changed for run, changed in found.items() if changed}


def flat(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables as one, its keys dotted."""
    found = {}
    for key, value in fields.items():
        inner = flat(value) if isinstance(value, Mapping) else {"": value}
        found |= {f"{key}.{name}".rstrip("."): item for name, item in inner.items()}
    return found


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
        raise DipgoError(f"row {row.label!r} picks {len(hits)} printed values of {metric!r}; name its group")
    return float(hits.iloc[0]) if len(hits) else None
