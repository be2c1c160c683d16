"""Checks claims against the records of one profile. A check gives results, and the results of a claim its verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import pandas as pd

from benchmarks.specs.profiles import place
from benchmarks.specs.record import ALL, Record
from tables.cells import difference, records_of, row_cell
from tables.claims.claims import DIFFERENCES, Check, Claim, checks
from tables.load import columns, load_paper, load_records, load_table, paper_value
from tables.spec import Column, Dataset, Row, Table

HOLDS, CONTRADICTED, UNDECIDED = "holds", "contradicted", "undecided"
MISSING = "missing"
UNTESTABLE = "cannot be tested here"
DECIDING = (CONTRADICTED, UNDECIDED, HOLDS)
"""The outcomes of checks. The first one that any check of a claim has is the claim's verdict."""
WORDS = {
    "not worse": {HOLDS: "within the margin", CONTRADICTED: "beyond the margin"},
    "collapses": {HOLDS: "collapses", CONTRADICTED: "no collapse"},
}


@dataclass(frozen=True)
class Result:
    """The result of a check for one pair of rows, one metric and one prompt set, in base units."""

    check: Check
    table: Table
    ours: Row
    theirs: Row
    dataset: Dataset
    column: Column
    outcome: str = MISSING
    """What came out: one of `DECIDING`, or `MISSING`."""
    word: str = ""
    """The outcome in the words of the check, such as "no difference"."""
    reason: str = ""
    """Why the result is missing."""
    absent: tuple[str, ...] = ()
    """The runs without a record."""
    prompts: str = ALL
    """The name of the prompt set, or `ALL` if the metric depends on no prompt."""
    ours_value: float | None = None
    theirs_value: float | None = None
    value: float | None = None
    """The difference ours - theirs, or the ratio ours / theirs."""
    low: float | None = None
    """The low end of the 95 % interval of a difference, or the lower quartile of a ratio over the timed repeats."""
    high: float | None = None
    effect: float | None = None
    """The effect of a difference, see `tables.stats.Difference`, as for `n` and `over`."""
    n: int | None = None
    over: str = ""
    slack: float = 0.0
    """How far the worse end of the interval is inside the bound, relative to their value."""
    macs_ratio: float | None = None
    """The ratio ours / theirs of MACs, all operations counted."""
    paper_metric: str = ""
    """The paper's name of the metric of the next two, which are the printed values of both rows."""
    paper_ours: float | None = None
    paper_theirs: float | None = None


@dataclass(frozen=True)
class Verdict:
    """What the records of one profile say about a claim."""

    claim: Claim
    profile: str
    text: str
    """One of `DECIDING`, or `UNTESTABLE`."""
    results: tuple[Result, ...]
    decisive: Result | None = None
    """The result with the least slack among those that gave the verdict; None if a result is missing."""
    reason: str = ""
    """Why the claim cannot be tested."""

    def count(self, outcome: str = "") -> int:
        """Return the number of deciding results that have this outcome, or of all deciding results."""
        return sum(outcome in ("", result.outcome) for result in self.results if not result.check.beside)


@dataclass
class Evidence:
    """The tables of one profile with their records and printed values. A table is loaded once."""

    folder: Path
    """The folder that holds the records of all profiles."""
    profile: str
    paper: pd.DataFrame = field(default_factory=load_paper)
    columns: dict[str, Column] = field(init=False)
    """All metrics by name."""
    loaded: dict[str, tuple[Table, dict[str, Record]]] = field(default_factory=dict)
    """The tables that are loaded so far, with their records by run id."""

    def __post_init__(self) -> None:
        self.columns = columns(self.profile)

    def table(self, name: str) -> tuple[Table, dict[str, Record]]:
        """Return the table of a name and its records by run id."""
        if name not in self.loaded:
            table = load_table(name, profile=self.profile)
            self.loaded[name] = table, load_records(table, place(self.profile, self.folder))
        return self.loaded[name]


def decide(low: float, high: float, bound: float, above: bool) -> str:
    """Return whether the whole interval "holds" or is "contradicted" on one side of the bound, else "undecided"."""
    inside, outside = (low >= bound, high < bound) if above else (high <= bound, low > bound)
    return HOLDS if inside else CONTRADICTED if outside else UNDECIDED


def _difference(result: Result, ours: Sequence[Record], theirs: Sequence[Record]) -> Result:
    check, column = result.check, result.column
    d = difference(ours, theirs, result.dataset.key, column.key)
    if d is None:
        return replace(result, reason=f"no {column.key} of single images in the records")
    scale = abs(result.theirs_value) or 1.0
    low, high = (d.low, d.high) if column.direction == "up" else (-d.high, -d.low)
    limit = -check.bound * scale
    if check.expect == "better":
        word = d.verdict(column.direction)
        outcome = {"better": HOLDS, "worse": CONTRADICTED}.get(word, UNDECIDED)
    else:
        outcome = decide(low, high, limit, above=check.expect == "not worse")
        word = WORDS[check.expect].get(outcome, "the interval includes the bound")
    slack = (limit - high if check.expect == "collapses" else low - limit) / scale
    numbers = {"value": d.value, "low": d.low, "high": d.high, "effect": d.effect, "n": d.n, "over": d.over}
    return replace(result, outcome=outcome, word=word, slack=slack, **numbers)


def _ratio(result: Result, ours: Sequence[Record], theirs: Sequence[Record]) -> Result:
    check, metric, dataset = result.check, result.column.key, result.dataset.key
    if not result.theirs_value:
        return replace(result, reason=f"{metric} of {result.theirs.run} is 0, so there is no ratio")
    value, low, high = result.ours_value / result.theirs_value, None, None
    our_cell, their_cell = (row_cell(side, dataset, metric) for side in (ours, theirs))
    if our_cell.get("low") and their_cell.get("low"):
        low, high = our_cell["low"] / their_cell["high"], our_cell["high"] / their_cell["low"]
    ends = (value, value) if low is None else (low, high)
    above = check.expect == "at least"
    outcome = decide(*ends, check.bound, above)
    asked = f"{check.expect} {check.bound:g}"
    words = {HOLDS: asked, CONTRADICTED: f"not {asked}", UNDECIDED: "the quartiles include the bound"}
    slack = (ends[0] - check.bound if above else check.bound - ends[1]) / check.bound
    prompts = dataset if metric in ours[0].metrics.get(dataset, {}) else ALL
    numbers = {"slack": slack, "value": value, "low": low, "high": high}
    return replace(result, outcome=outcome, word=words[outcome], prompts=prompts, **numbers)


def _result(evidence: Evidence, check: Check, dataset: Dataset, run: str, metric: str) -> Result:
    table, records = evidence.table(check.table)
    ours, theirs, column = table.find_row(check.ours), table.find_row(run), evidence.columns[metric]
    printed = check.printed or column.paper
    values = [paper_value(evidence.paper, row, dataset.paper, printed) for row in (ours, theirs)]
    pair = {"paper_metric": printed, "paper_ours": values[0], "paper_theirs": values[1]} if None not in values else {}
    prompts = dataset.key if check.expect in DIFFERENCES else ALL
    result = Result(check, table, ours, theirs, dataset, column, prompts=prompts, **pair)
    absent = tuple(run for run in (*ours.runs, *theirs.runs) if run not in records)
    if absent:
        way_out = table.no_record if evidence.profile == "embedded" else f"none in the {evidence.profile} profile"
        return replace(result, absent=absent, reason=way_out)
    sides = [records_of(row, records) for row in (ours, theirs)]
    our_cell, their_cell = (row_cell(side, dataset.key, metric) for side in sides)
    if our_cell is None or their_cell is None:
        without = next(record for record in (*sides[0], *sides[1]) if not record.cell(dataset.key, metric))
        reason = without.absent.get(metric, "the record does not hold it")
        return replace(result, reason=f"{metric} of {without.id}: {reason}")
    result = replace(result, ours_value=our_cell["value"], theirs_value=their_cell["value"])
    macs = [row_cell(side, dataset.key, "macs_full") for side in sides]
    if all(macs):
        result = replace(result, macs_ratio=macs[0]["value"] / macs[1]["value"])
    return (_difference if check.expect in DIFFERENCES else _ratio)(result, *sides)


def _results(evidence: Evidence, claim: Claim) -> Iterator[Result]:
    for check in checks(claim):
        datasets = evidence.table(check.table)[0].dataset
        # A ratio is taken of metrics that depend on no prompt, so one prompt set stands for all.
        for metric, dataset, run in product(
            check.metrics, datasets if check.expect in DIFFERENCES else datasets[-1:], check.theirs
        ):
            yield _result(evidence, check, dataset, run, metric)


def _why_missing(results: Sequence[Result]) -> str:
    """Says which runs have no record and what makes them, then what else is missing."""
    runs: dict[str, dict[str, None]] = {}
    for result in results:
        if result.absent:
            runs.setdefault(result.reason, {}).update(dict.fromkeys(result.absent))
    parts = [f"no record of {', '.join(absent)}: {way_out}" for way_out, absent in runs.items()]
    return "; ".join([*parts, *dict.fromkeys(result.reason for result in results if not result.absent)])


def verdict_of(evidence: Evidence, claim: Claim) -> Verdict:
    """Return the verdict on a claim.

    The claim cannot be tested if a record is missing. Otherwise one result that contradicts it decides, then one whose
    interval includes the bound and leaves it undecided; else it holds.
    """
    results = tuple(_results(evidence, claim))
    deciding = [result for result in results if not result.check.beside]
    if missing := [result for result in deciding if result.outcome == MISSING]:
        return Verdict(claim, evidence.profile, UNTESTABLE, results, reason=_why_missing(missing))
    outcome = next(outcome for outcome in DECIDING if outcome in {result.outcome for result in deciding})
    decisive = min((result for result in deciding if result.outcome == outcome), key=lambda result: result.slack)
    return Verdict(claim, evidence.profile, outcome, results, decisive, decisive.word if outcome == UNDECIDED else "")
