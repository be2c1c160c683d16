"""Suites: TOML files that list the runs of a table, and what a profile changes in them. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.specs.files import merge, read_toml
from benchmarks.specs.profiles import DEFAULT, PROFILES
from benchmarks.specs.run import RunSpec
from benchmarks.specs.sweep import expand
from dipgo.errors import DipgoError, unknown

SHOWN = ("group", "label", "paper", "controls", "series", "budget")
"""Fields of a row that say how a table shows it. No result depends on them, so a `RunSpec` has none of them."""
SHARED = ("defaults", "method")
"""The tables that a suite and its profiles both have, and that another suite may extend."""
TABLES = (*SHARED, "sweep", "run", "profile", "extends")
OVERLAY_TABLES = (*SHARED, "model", "run")


def read_suite(path: Path | str, profile: str = DEFAULT) -> dict[str, dict[str, Any]]:
    """Return the rows of a suite file by id, in its order: the fields of each run as they are written, with those in
    `SHOWN`.

    A suite has these tables:
    - `[defaults]`: fields that all runs share.
    - `[method.NAME]`: default params of one method.
    - `[[run]]`: the fields of one run, or of several where `over` names sweeps. They override both tables above.
    - `[sweep.NAME]`: lists of values, for runs that differ in little else (see `benchmarks.specs.sweep`).
    - `[profile.NAME]`: what differs in a profile, in tables of the names `defaults` and `method`; `model`, fields by
      the model that a run names, such as another model; and `run`, fields by the id of a run as its table writes it.
    - `extends`: the name of another suite in the folder, whose defaults, methods and profiles hold where this one
      says nothing else. Its runs do not.

    Raises `DipgoError` for a duplicate id or an unknown name.
    """
    own = read_toml(path)
    data = _extended(own, Path(path))
    name = PROFILES[profile].overlay
    if name and name not in data.get("profile", {}):
        raise DipgoError(f"{path}: no [profile.{name}]; this suite has no such profile")
    overlay = data.get("profile", {}).get(name, {})
    for tables, known in ((data, TABLES), (overlay, OVERLAY_TABLES)):
        for table in tables:
            if table not in known:
                raise DipgoError(f"{path}: {unknown('table', table, known)}")
    rows = _rows(data, overlay, str(path))
    written = [str(run.get("id")) for run in data.get("run", [])]
    used = {str(row.get("method")) for row in rows.values()}
    for run in overlay.get("run", {}):
        if run not in written:
            raise DipgoError(f"{path}: [profile]: {unknown('run', run, written)}")
    for method in merge(own.get("method", {}), own.get("profile", {}).get(name, {}).get("method", {})):
        if method not in used:
            raise DipgoError(f"{path}: no run uses [method.{method}]: {unknown('method', method, used)}")
    return {run: {**row, "profile": profile} for run, row in rows.items()}


def _extended(own: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the suite's tables over what it takes from the suite that it `extends`."""
    if "extends" not in own:
        return own
    base = read_toml(path.with_name(f"{own['extends']}.toml"))
    profiles = {
        name: {key: table for key, table in tables.items() if key in (*SHARED, "model")}
        for name, tables in base.get("profile", {}).items()
    }
    return merge({key: base.get(key, {}) for key in SHARED} | {"profile": profiles}, own)


def _rows(data: Mapping[str, Any], overlay: Mapping[str, Any], path: str) -> dict[str, dict[str, Any]]:
    """Return the fields of every run by id, with the overlay of a profile on top."""
    defaults, methods = (merge(data.get(key, {}), overlay.get(key, {})) for key in SHARED)
    rows: dict[str, dict[str, Any]] = {}
    for written in data.get("run", []):
        name = written.get("id", "(no id)")
        where, changes = f"{path}: run {name!r}", overlay.get("run", {}).get(name, {})
        for run in expand({"id": name, **written, "profile": changes}, data.get("sweep", {}), where):
            changes = run.pop("profile")
            if run["id"] in rows:
                raise DipgoError(f"{where}: two runs have the id {run['id']!r}; rename one")
            row = {**defaults, **run}
            row = merge(merge(row, overlay.get("model", {}).get(row.get("model"), {})), changes)
            if isinstance(row.setdefault("params", {}), Mapping):
                row["params"] = merge(methods.get(row.get("method"), {}), row["params"])
            rows[run["id"]] = row
    return rows


def override(rows: Mapping[str, dict[str, Any]], settings: Mapping[str, Any]) -> None:
    """Sets fields of all rows, such as {"limit": 1, "params.train.steps": 2}. A dotted field is set in the rows that
    have it.

    Raises `DipgoError` for a field that no run has.
    """
    known = {field.name for field in fields(RunSpec)} - {"id", "revision", "reference", "needs"}
    for name, value in settings.items():
        *tables, last = name.split(".")
        if (tables or [last])[0] not in known:
            raise unknown("field", name, known)
        found = False
        for row in rows.values():
            place: Any = row
            for table in tables:
                place = place.get(table) if isinstance(place, Mapping) else None
            if isinstance(place, dict) and (not tables or last in place):
                place[last], found = value, True
        if not found:
            raise DipgoError(f"no run has the field {name!r}; name one that the suite sets")


def load_suite(
    path: Path | str,
    revision: Callable[[Mapping[str, Any]], str],
    profile: str = DEFAULT,
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> list[RunSpec]:
    """Return the runs of a suite file (see `read_suite`), in its order, except that a run comes after every run it
    needs.

    path: the file.
    revision: the function that gives the revision of a row from its fields.
    profile: the profile whose changes hold.
    settings: fields that all runs have instead of the suite's (see `override`).

    A run whose reference is itself gets no reference. Raises `DipgoError` for a duplicate id, an unknown name or a
    circular need.
    """
    rows = read_suite(path, profile)
    override(rows, settings)

    specs: dict[str, RunSpec] = {}

    def resolve(name: str, asked_by: tuple[str, ...] = ()) -> RunSpec:
        if name not in rows:
            raise DipgoError(f"{path}: run {asked_by[-1]!r} needs an {unknown('run', name, rows)}")
        if name in asked_by:
            raise DipgoError(f"{path}: run {name!r} needs itself, through {' -> '.join(asked_by)}")
        if name not in specs:
            row = {key: value for key, value in rows[name].items() if key not in SHOWN}
            compared = {key: None if row.get(key) == name else row.get(key) for key in ("reference", "converged")}
            try:
                spec = RunSpec.from_json({**row, "revision": revision(row), **compared})
            except DipgoError as error:
                raise DipgoError(f"{path}: {error}") from None
            named = (spec.reference, spec.converged, spec.params.get("of"))
            others = [other for other in named if other is not None]
            needs = tuple(resolve(other, (*asked_by, name)).digest for other in others)
            specs[name] = replace(spec, needs=needs)
        return specs[name]

    for name in rows:
        resolve(name)
    return list(specs.values())


def printed_runs(path: Path | str, profile: str = DEFAULT) -> list[str]:
    """Return the ids of the runs that the paper's table of this suite prints. Raises `DipgoError` where there are none.

    `paper` names their printed row. Where it names a table, that is another one, from which a row was added.
    """
    named = {name: row.get("paper") for name, row in read_suite(path, profile).items()}
    printed = [name for name, paper in named.items() if paper and not (isinstance(paper, Mapping) and "table" in paper)]
    if not printed:
        raise DipgoError(f"{path}: --printed: no run of this suite stands in the paper")
    return printed


def with_needs(specs: Sequence[RunSpec], only: Sequence[str]) -> list[RunSpec]:
    """Return the runs of the ids `only` and those that they need, in the suite's order, in which needs come first.
    Raises `DipgoError` for an id that the suite does not have."""
    known = [spec.id for spec in specs]
    for name in only:
        if name not in known:
            raise unknown("row", name, known)
    digests = {spec.digest for spec in specs if spec.id in only}
    for spec in reversed(specs):
        if spec.digest in digests:
            digests |= set(spec.needs)
    return [spec for spec in specs if spec.digest in digests]
