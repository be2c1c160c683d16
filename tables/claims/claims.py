"""Claims as data (claims.toml), the paper's and ours: which rows of the tables each rests on, and what it expects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path

from benchmarks.specs.files import construct, read_toml
from benchmarks.specs.run import RunSpec
from benchmarks.specs.suite import load_suite
from dipgo.errors import DipgoError, unknown
from tables.load import HERE, SUITES, load_paper, load_table
from tables.spec import CONTROL, Table

DIFFERENCES = ("better", "not worse", "collapses")
RATIOS = ("at most", "at least")
CONTROLS = ("same sampler", "another sampler", "uniform skip", "own timesteps")


@dataclass(frozen=True)
class Check:
    """A row of a table against others of it, named by their runs or as the row's `group` of controls, in each of the
    metrics.

    `expect` is of the difference ours - theirs on each prompt set: "better" than 0; "not worse" by more than `bound`;
    "collapses" by at least `bound`, both a share of their value. Or of the ratio ours / theirs of what depends on no
    prompt: "at most" or "at least" `bound`. `why`: where the bound comes from. `printed`: the paper's metric, where
    it is another than the column's. `beside`: shown, decides nothing.
    """

    table: str
    ours: str
    metrics: tuple[str, ...]
    theirs: tuple[str, ...] = ()
    group: str = ""
    expect: str = "better"
    bound: float = 0.0
    why: str = ""
    printed: str = ""
    beside: bool = False


@dataclass(frozen=True)
class Controls:
    """Every pruned row of the tables is expected better than each of its controls of these kinds, in every metric
    that the table compares with its controls. Those in named groups are for checks of their own."""

    tables: tuple[str, ...]
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class Claim:
    """`source`: where the paper says it, or `beyond`: it is of this project alone. `note`: what the reader must know
    besides. It holds when every check does."""

    number: str
    text: str
    source: str
    note: str = ""
    beyond: bool = False
    check: tuple[Check, ...] = ()
    controls: tuple[Controls, ...] = ()


def _validated(check: Check, table: Table) -> Check:
    """The check with the runs of its group by name."""
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
    """Raises `DipgoError` for an unknown field, table, run, metric, kind or expectation, for a bound without a
    reason, and for two claims of one number."""
    claims: list[Claim] = []
    table_of = cache(load_table)
    for item in read_toml(path).get("claim", []):
        where = f"{path}: claim {item.get('number', '(no number)')}"
        own = tuple(construct(Check, check, where) for check in item.get("check", []))
        controls = tuple(construct(Controls, each, where) for each in item.get("controls", []))
        claim = construct(Claim, {**item, "check": own, "controls": controls}, where)
        if claim.number in {other.number for other in claims}:
            raise DipgoError(f"{where}: two claims have this number; change one")
        if not controls and all(check.beside for check in own):
            raise DipgoError(f"{where}: nothing decides; add controls or a check that is not beside")
        try:
            claim = replace(claim, check=tuple(_validated(check, table_of(check.table)) for check in own))
            for kind in (kind for each in controls for kind in each.kinds):
                if kind not in CONTROLS:
                    raise unknown("kind of control", kind, CONTROLS)
            for name in (name for each in controls for name in each.tables):
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
    """The claim's own checks, then one for each pruned row, control and metric of its `controls`; a pair that two
    tables share comes once."""
    yield from claim.check
    seen: set[tuple[str, str, str]] = set()
    for controls in claim.controls:
        for table in map(load_table, controls.tables):
            # Kinds are read off the suite, since a control without a record has one, too.
            suite = load_suite(SUITES / f"{table.name}.toml", lambda row: "any")
            runs = {spec.id: spec for spec in suite}
            for metric, row in product(table.compared, table.rows):
                for control in row.controls.get(CONTROL, ()):
                    key = (row.run, control, metric)
                    if key not in seen and _kind(runs[row.run], runs[control]) in controls.kinds:
                        seen.add(key)
                        yield Check(table.name, row.run, (metric,), (control,))
