"""Reads the claims of the paper and of this project from `claims.toml`. A claim has checks on rows of tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path

from benchmarks.specs.files import construct, read_toml
from benchmarks.specs.run import RunSpec
from benchmarks.specs.suite import load_suite
from benchmarks.specs.sweep import expand
from dipgo.errors import DipgoError, unknown
from tables.load import HERE, SUITES, load_paper, load_table
from tables.spec import CONTROL, Table

DIFFERENCES = ("better", "not worse", "collapses")
RATIOS = ("at most", "at least")
CONTROLS = ("same sampler", "another sampler", "uniform skip", "own timesteps")


@dataclass(frozen=True)
class Check:
    """Compares a row of a table with other rows of the table and says what the outcome must be."""

    table: str
    ours: str
    """The run of the row."""
    metrics: tuple[str, ...]
    """The metrics of the comparison."""
    theirs: tuple[str, ...] = ()
    """The runs of the other rows; empty if `group` names them."""
    group: str = ""
    """The group of the row's controls that are the other rows."""
    expect: str = "better"
    """What the outcome must be.

    "better", "not worse" and "collapses" are about the difference ours - theirs on each prompt set. The row may be
    worse by at most `bound`, or must be worse by at least `bound`. "at most" and "at least" are about the ratio
    ours / theirs of a metric that depends on no prompt, and `bound` is the limit of the ratio.
    """
    bound: float = 0.0
    """The bound; for differences a share of their value. "better" has none."""
    why: str = ""
    """The reason for the bound."""
    printed: str = ""
    """The paper's metric whose values are shown; empty for the metric of the column."""
    beside: bool = False
    """Whether the check is only shown and does not decide the claim."""


@dataclass(frozen=True)
class Controls:
    """Expects every pruned row of some tables to be better than its controls, in each metric that the table compares.

    Controls in named groups do not count here. A `Check` names them.
    """

    tables: tuple[str, ...]
    kinds: tuple[str, ...]
    """The kinds of controls that count."""


@dataclass(frozen=True)
class Claim:
    """A claim holds if all its checks hold."""

    number: str
    text: str
    source: str
    """The place in the paper."""
    note: str = ""
    """What else a reader must know."""
    beyond: bool = False
    """Whether the claim is this project's and not the paper's."""
    check: tuple[Check, ...] = ()
    controls: tuple[Controls, ...] = ()


def _validated(check: Check, table: Table) -> Check:
    """Return the check with `theirs` filled in from its group. Raises `DipgoError` if a name in it is unknown."""
    runs = {row.run for row in table.rows} - {""}
    if check.ours not in runs:
        raise unknown("run", check.ours, runs)
    if check.group:
        groups = table.find_row(check.ours).controls
        if check.theirs:
            raise DipgoError("a check names runs in `theirs` or a `group` of controls; drop one")
        if check.group not in groups:
            raise unknown("group of controls", check.group, groups)
        check = replace(check, theirs=groups[check.group])
    if check.expect not in DIFFERENCES + RATIOS:
        raise unknown("expectation", check.expect, DIFFERENCES + RATIOS)
    if check.expect != "better" and not (check.bound > 0 and check.why):
        raise DipgoError(f"{check.expect!r} needs a bound above 0 and its reason in `why`; add them")
    if not check.theirs or not check.metrics:
        raise DipgoError("a check needs runs in `theirs` and names in `metrics`; add them")
    for run in check.theirs:
        if run not in runs:
            raise unknown("run", run, runs)
    columns = {column.key: column for column in table.column}
    for metric in check.metrics:
        if metric not in columns:
            raise unknown("metric", metric, columns)
        if check.expect in DIFFERENCES and not columns[metric].direction:
            raise DipgoError(f"{metric} has no better end; check a ratio of it instead")
    if check.printed and check.printed not in (printed := set(load_paper()["metric"])):
        raise unknown("paper metric", check.printed, printed)
    return check


def load_claims(path: Path = HERE / "claims.toml") -> list[Claim]:
    """Return the claims of a file, in its order. A check that is `over` a sweep is several checks
    (`benchmarks.specs.sweep`).

    Raises `DipgoError` for an unknown field, table, run, metric, kind or expectation, for a bound without a reason, and
    for two claims of one number.
    """
    claims: list[Claim] = []
    table_of, data = cache(load_table), read_toml(path)
    for item in data.get("claim", []):
        where = f"{path}: claim {item.get('number', '(no number)')}"
        tables = (table for check in item.get("check", []) for table in expand(check, data.get("sweep", {}), where))
        named = tuple(construct(Check, table, where) for table in tables)
        controls = tuple(construct(Controls, table, where) for table in item.get("controls", []))
        claim = construct(Claim, {**item, "check": named, "controls": controls}, where)
        if claim.number in {earlier.number for earlier in claims}:
            raise DipgoError(f"{where}: two claims have this number; change one")
        if not controls and all(check.beside for check in named):
            raise DipgoError(f"{where}: nothing decides; add controls or a check that is not beside")
        try:
            claim = replace(claim, check=tuple(_validated(check, table_of(check.table)) for check in named))
            for item in controls:
                for kind in item.kinds:
                    if kind not in CONTROLS:
                        raise unknown("kind of control", kind, CONTROLS)
                for name in item.tables:
                    table_of(name)
        except DipgoError as error:
            raise DipgoError(f"{where}: {error}") from None
        claims.append(claim)
    return claims


def _kind(ours: RunSpec, control: RunSpec) -> str:
    if control.method == "dense":
        return "same sampler" if control.scheduler == ours.scheduler else "another sampler"
    return {"step_skip": "uniform skip", "kept_timesteps": "own timesteps"}.get(control.method, control.method)


def checks(claim: Claim) -> Iterator[Check]:
    """Yield the checks in `check`, then one for each pruned row, control and metric of `controls`.

    A pair of runs that two tables share comes once.
    """
    yield from claim.check
    seen: set[tuple[str, str, str]] = set()
    for controls in claim.controls:
        for table in map(load_table, controls.tables):
            # The suite tells the kind of a control even if the control has no record.
            suite = load_suite(SUITES / f"{table.name}.toml", lambda row: "any")
            runs = {spec.id: spec for spec in suite}
            for metric, row in product(table.compared, table.rows):
                for control in row.controls.get(CONTROL, ()):
                    key = (row.run, control, metric)
                    if key not in seen and _kind(runs[row.run], runs[control]) in controls.kinds:
                        seen.add(key)
                        yield Check(table.name, row.run, (metric,), (control,))
