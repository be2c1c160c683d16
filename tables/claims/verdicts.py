"""Claims against the records of one profile: each check into a finding, the findings of a claim into a verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import pandas as pd

from benchmarks.specs.record import ALL, Record
from tables.claims.claims import DIFFERENCES, Check, Claim, checks
from tables.load import columns, folder_of, load_paper, load_records, load_table, paper_value
from tables.measure import difference, records_of, row_cell
from tables.spec import Column, Dataset, Row, Table

PROFILES = ("embedded", "paper")
HOLDS, FAILS, UNTESTABLE = "holds here", "does not hold here", "not testable here"
VERDICTS = {"fails": FAILS, "undecided": UNTESTABLE, "holds": HOLDS}  # the first outcome that any check has decides
WORDS = {
    "not worse": {"holds": "within the margin", "fails": "beyond the margin"},
    "collapses": {"holds": "collapses", "fails": "no collapse"},
}


@dataclass(frozen=True)
class Finding:
    """One check on one prompt set, in base units.

    `value` is ours - theirs with its 95 % interval [low, high] over `n` "prompts" or training "seeds", or
    ours / theirs, where [low, high] are the quartiles of repeats. `outcome`: holds, fails, undecided or missing; `word`
    says more, `reason` why it is missing, `absent` the runs without a record. `slack`: how far the interval's worse end
    is inside the bound, relative to theirs. `macs_ratio`: of all operations.
    """

    check: Check
    table: Table
    ours: Row
    theirs: Row
    dataset: Dataset
    column: Column
    outcome: str = "missing"
    word: str = ""
    reason: str = ""
    absent: tuple[str, ...] = ()
    prompts: str = ALL
    ours_value: float | None = None
    theirs_value: float | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    effect: float | None = None
    n: int | None = None
    over: str = ""
    slack: float = 0.0
    macs_ratio: float | None = None
    paper_metric: str = ""
    paper_ours: float | None = None
    paper_theirs: float | None = None


@dataclass(frozen=True)
class Verdict:
    """`decisive`: of the findings that gave the verdict, the one with the least slack; None where one is missing."""

    claim: Claim
    profile: str
    text: str
    findings: tuple[Finding, ...]
    decisive: Finding | None = None
    reason: str = ""

    def count(self, outcome: str = "") -> int:
        """How many of the findings that decide have this outcome, or how many there are."""
        return sum(outcome in ("", each.outcome) for each in self.findings if not each.check.beside)


@dataclass
class Evidence:
    """The tables with their records of one profile, each loaded once, its columns, and the paper's values. `folder`
    holds the records of all profiles."""

    folder: Path
    profile: str
    paper: pd.DataFrame = field(default_factory=load_paper)
    columns: dict[str, Column] = field(init=False)
    loaded: dict[str, tuple[Table, dict[str, Record]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.columns = columns(self.profile)

    def table(self, name: str) -> tuple[Table, dict[str, Record]]:
        if name not in self.loaded:
            table = load_table(name, profile=self.profile)
            self.loaded[name] = table, load_records(table, folder_of(self.profile, self.folder))
        return self.loaded[name]


def decide(low: float, high: float, bound: float, above: bool) -> str:
    """holds where the whole interval is on the asked side of the bound, fails where it is on the other."""
    inside, outside = (low >= bound, high < bound) if above else (high <= bound, low > bound)
    return "holds" if inside else "fails" if outside else "undecided"


def _difference(finding: Finding, ours: Sequence[Record], theirs: Sequence[Record]) -> Finding:
    check, column = finding.check, finding.column
    d = difference(ours, theirs, finding.dataset.key, column.key)
    if d is None:
        return replace(finding, reason=f"no {column.key} of single images in the records")
    scale = abs(finding.theirs_value) or 1.0
    low, high = (d.low, d.high) if column.direction == "up" else (-d.high, -d.low)
    limit = -check.bound * scale
    if check.expect == "better":
        word = d.verdict(column.direction)
        outcome = "holds" if word == "better" else "fails"
    else:
        outcome = decide(low, high, limit, above=check.expect == "not worse")
        word = WORDS[check.expect].get(outcome, "the interval includes the bound")
    slack = (limit - high if check.expect == "collapses" else low - limit) / scale
    numbers = {"value": d.value, "low": d.low, "high": d.high, "effect": d.effect, "n": d.n, "over": d.over}
    return replace(finding, outcome=outcome, word=word, slack=slack, **numbers)


def _ratio(finding: Finding, ours: Sequence[Record], theirs: Sequence[Record]) -> Finding:
    check, metric, dataset = finding.check, finding.column.key, finding.dataset.key
    if not finding.theirs_value:
        return replace(finding, reason=f"{metric} of {finding.theirs.run} is 0, so there is no ratio")
    value, low, high = finding.ours_value / finding.theirs_value, None, None
    one, other = (row_cell(side, dataset, metric) for side in (ours, theirs))
    if one.get("low") and other.get("low"):
        low, high = one["low"] / other["high"], one["high"] / other["low"]
    ends = (value, value) if low is None else (low, high)
    above = check.expect == "at least"
    outcome = decide(*ends, check.bound, above)
    asked = f"{check.expect} {check.bound:g}"
    words = {"holds": asked, "fails": f"not {asked}", "undecided": "the quartiles include the bound"}
    slack = (ends[0] - check.bound if above else check.bound - ends[1]) / check.bound
    prompts = dataset if metric in ours[0].metrics.get(dataset, {}) else ALL
    numbers = {"slack": slack, "value": value, "low": low, "high": high}
    return replace(finding, outcome=outcome, word=words[outcome], prompts=prompts, **numbers)


def _finding(evidence: Evidence, check: Check, dataset: Dataset, run: str, metric: str) -> Finding:
    table, records = evidence.table(check.table)
    ours, theirs, column = table.find_row(check.ours), table.find_row(run), evidence.columns[metric]
    printed = check.printed or column.paper
    values = [paper_value(evidence.paper, row, dataset.paper, printed) for row in (ours, theirs)]
    pair = {"paper_metric": printed, "paper_ours": values[0], "paper_theirs": values[1]} if None not in values else {}
    prompts = dataset.key if check.expect in DIFFERENCES else ALL
    finding = Finding(check, table, ours, theirs, dataset, column, prompts=prompts, **pair)
    absent = tuple(run for run in (*ours.runs, *theirs.runs) if run not in records)
    if absent:
        way_out = table.no_record if evidence.profile == "embedded" else f"none in the {evidence.profile} profile"
        return replace(finding, absent=absent, reason=way_out)
    sides = [records_of(row, records) for row in (ours, theirs)]
    one, other = (row_cell(side, dataset.key, metric) for side in sides)
    if one is None or other is None:
        without = next(each for each in (*sides[0], *sides[1]) if not each.cell(dataset.key, metric))
        reason = without.absent.get(metric, "the record does not hold it")
        return replace(finding, reason=f"{metric} of {without.id}: {reason}")
    finding = replace(finding, ours_value=one["value"], theirs_value=other["value"])
    macs = [row_cell(side, dataset.key, "macs_full") for side in sides]
    if all(macs):
        finding = replace(finding, macs_ratio=macs[0]["value"] / macs[1]["value"])
    return (_difference if check.expect in DIFFERENCES else _ratio)(finding, *sides)


def _findings(evidence: Evidence, claim: Claim) -> Iterator[Finding]:
    for check in checks(claim):
        datasets = evidence.table(check.table)[0].dataset
        # What a ratio is of depends on no prompt, so one prompt set stands for all.
        for metric, dataset, run in product(
            check.metrics, datasets if check.expect in DIFFERENCES else datasets[-1:], check.theirs
        ):
            yield _finding(evidence, check, dataset, run, metric)


def _why_missing(findings: Sequence[Finding]) -> str:
    """Runs without a record by their way out, then what else is missing."""
    runs: dict[str, dict[str, None]] = {}
    for finding in findings:
        if finding.absent:
            runs.setdefault(finding.reason, {}).update(dict.fromkeys(finding.absent))
    parts = [f"no record of {', '.join(absent)}: {way_out}" for way_out, absent in runs.items()]
    return "; ".join([*parts, *dict.fromkeys(each.reason for each in findings if not each.absent)])


def judge(evidence: Evidence, claim: Claim) -> Verdict:
    """A claim holds where every check of it does, and does not where one fails; where a check misses a record, or
    none fails and an interval includes its bound, it cannot be tested."""
    findings = tuple(_findings(evidence, claim))
    deciding = [finding for finding in findings if not finding.check.beside]
    if missing := [each for each in deciding if each.outcome == "missing"]:
        return Verdict(claim, evidence.profile, UNTESTABLE, findings, reason=_why_missing(missing))
    outcome = next(outcome for outcome in VERDICTS if outcome in {each.outcome for each in deciding})
    decisive = min((each for each in deciding if each.outcome == outcome), key=lambda each: each.slack)
    reason = decisive.word if outcome == "undecided" else ""
    return Verdict(claim, evidence.profile, VERDICTS[outcome], findings, decisive, reason)
