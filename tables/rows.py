"""The rows of a table, from the runs of its suite."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from benchmarks.specs.files import construct, flat
from benchmarks.specs.suite import SHOWN
from dipgo.errors import DipgoError
from tables.spec import CONTROL, Row

NO_GROUP = "Further runs"
"""The title of the group of runs whose suite names none."""
SEED = "params.train.seed"
APART = {"id", "metrics", *SHOWN}
"""Fields in which the runs of one row may differ, besides the seed."""


def read_rows(
    runs: Mapping[str, Mapping[str, Any]], table: str, shared: Mapping[str, Any], where: str
) -> dict[str, list[Row]]:
    """Return the rows of a table by the title of their group, in the order of the suite.

    Every run has a row. Runs that differ in nothing but the seed of their training are one row.

    runs: the fields of each run, from `read_suite`. `group` is the title of its group, `label` that of its row,
        `controls` the runs that it is held against, as a list or as a table of lists by group, and `paper` what picks
        its printed values out of `paper.csv`: a method of the paper's table, or a table of columns.
    table: the paper's name of the table, such as "1".
    shared: the tables of `shared.toml`, which give the label of a run that has none.
    where: what an error names first.

    Raises `DipgoError` for an unknown field, and for two runs that are one training.
    """
    trainings: dict[str, dict[Any, str]] = {}
    for run, fields in runs.items():
        training, seed = _training(fields)
        same = trainings.setdefault(training, {})
        if seed in same:
            raise DipgoError(f"{where}: runs {same[seed]!r} and {run!r} are one training with one seed; drop one")
        same[seed] = run
    rows: dict[str, list[Row]] = {}
    for run, *seeds in (same.values() for same in trainings.values()):
        row = _row(run, seeds, runs[run], table, shared, where)
        rows.setdefault(str(runs[run].get("group", NO_GROUP)), []).append(row)
    return rows


def printed(given: str | Mapping[str, str], table: str) -> dict[str, Any]:
    """Return the fields `paper` and `added` of a row. `given` is a method of the paper's table, or columns of
    `paper.csv`."""
    paper = {"table": table, **({"method": given} if isinstance(given, str) else given)} if given else None
    return {"paper": paper, "added": paper is None or paper["table"] != table}


def _training(fields: Mapping[str, Any]) -> tuple[str, Any]:
    """Return what a run has in common with trainings that have other seeds, and its seed.

    If the run trains nothing, these are its id and None.
    """
    settings = flat(fields)
    if SEED not in settings:
        return fields["id"], None
    seed = settings.pop(SEED)
    common = {key: value for key, value in settings.items() if key.partition(".")[0] not in APART}
    return json.dumps(common, sort_keys=True, default=str), seed


def _row(
    run: str, seeds: list[str], fields: Mapping[str, Any], table: str, shared: Mapping[str, Any], where: str
) -> Row:
    controls = fields.get("controls", {})
    controls = controls if isinstance(controls, Mapping) else {CONTROL: controls}
    row = {
        "label": fields.get("label") or _label(fields, shared),
        "run": run,
        "seeds": tuple(seeds),
        **printed(fields.get("paper", ""), table),
        "controls": {group: tuple(names) for group, names in controls.items() if names},
        "baseline": fields.get("reference") or run,
    }
    return construct(Row, row, where)


def _label(fields: Mapping[str, Any], shared: Mapping[str, Any]) -> str:
    """Return the label of a run by the `[[label]]` tables of `shared.toml`, or its id."""
    known = flat(fields)
    scheduler = fields.get("scheduler", "")
    values = {key.removeprefix("params."): value for key, value in known.items()}
    values["sampler"] = shared.get("sampler", {}).get(scheduler, scheduler)
    for rule in shared.get("label", []):
        if rule["match"].items() <= known.items():
            try:
                return rule["text"].format_map(values)
            except KeyError:  # the run lacks a placeholder's field
                continue
    return fields["id"]
