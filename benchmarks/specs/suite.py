"""Suites: TOML files that list the runs of a table, and what a profile changes in them. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.specs.files import merge, read_toml
from benchmarks.specs.run import OVERLAYS, PROFILES, RunSpec
from dipgo.errors import DipgoError, unknown


def read_suite(path: Path | str, profile: str = PROFILES[0]) -> dict[str, dict[str, Any]]:
    """The rows of a suite file by id, in its order: the fields of each run as they are written, no spec yet.

    `[defaults]` holds fields that all runs share, `[method.NAME]` default params of one method, and each `[[run]]`
    overrides both. `[profile.NAME]` holds what differs in a profile: tables of the same names; `model`, fields by the
    model that a run names, such as another model; and `run`, fields by run id. Raises `DipgoError` for a duplicate
    id or an unknown name.
    """
    data = read_toml(path)
    if profile not in PROFILES:
        raise unknown("profile", profile, PROFILES)
    own = {"defaults": {}, "method": {}, "run": []} | data
    overlays, name = own.pop("profile", {}), OVERLAYS.get(profile, profile)
    if profile != PROFILES[0] and name not in overlays:
        raise DipgoError(f"{path}: no [profile.{name}]; this suite has no such profile")
    overlay = overlays.get(name, {})
    for tables, known in ((own, ("defaults", "method", "run")), (overlay, ("defaults", "method", "run", "model"))):
        for table in tables:
            if table not in known:
                raise DipgoError(f"{path}: {unknown('table', table, known)}")
    defaults = merge(own["defaults"], overlay.get("defaults", {}))
    methods = merge(own["method"], overlay.get("method", {}))
    rows: dict[str, dict[str, Any]] = {}
    for run in own["run"]:
        name = run.get("id", "(no id)")
        if name in rows:
            raise DipgoError(f"{path}: two runs have the id {name!r}; rename one")
        row = {**defaults, **run}
        for changes in (overlay.get("model", {}).get(row.get("model")), overlay.get("run", {}).get(name)):
            row = merge(row, changes or {})
        if isinstance(row.setdefault("params", {}), Mapping):
            row["params"] = merge(methods.get(row.get("method"), {}), row["params"])
        row["profile"] = profile
        rows[name] = row
    for name in overlay.get("run", {}):
        if name not in rows:
            raise DipgoError(f"{path}: [profile]: {unknown('run', name, rows)}")
    used = {str(row.get("method")) for row in rows.values()}
    for method in methods:
        if method not in used:
            raise DipgoError(f"{path}: no run uses [method.{method}]: {unknown('method', method, used)}")
    return rows


def override(rows: Mapping[str, dict[str, Any]], settings: Mapping[str, Any]) -> None:
    """Set fields of all rows, such as {"limit": 1, "params.train.steps": 2}; a dotted one only where its table is.

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
    profile: str = PROFILES[0],
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> list[RunSpec]:
    """The runs of a suite file (see `read_suite`), in its order, except that a run comes after every run it needs.

    `revision` gives the revision of a row's fields. `settings`: see `override`. A run whose reference is itself has
    none. Raises `DipgoError` for a duplicate id, an unknown name or a circular need.
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
            row = rows[name]
            reference = None if row.get("reference") == name else row.get("reference")
            try:
                spec = RunSpec.from_json({**row, "revision": revision(row), "reference": reference})
            except DipgoError as error:
                raise DipgoError(f"{path}: {error}") from None
            others = [other for other in (spec.reference, spec.params.get("of")) if other is not None]
            needs = tuple(resolve(other, (*asked_by, name)).digest for other in others)
            specs[name] = replace(spec, needs=needs)
        return specs[name]

    for name in rows:
        resolve(name)
    return list(specs.values())
