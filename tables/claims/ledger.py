"""Renders the ledger of claims as markdown and CSV: the verdict on every claim, and all comparisons behind it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.specs.profiles import PROFILES
from benchmarks.specs.record import ALL
from tables.claims.claims import DIFFERENCES, load_claims
from tables.claims.verdicts import FAILS, HOLDS, UNTESTABLE, Evidence, Result, Verdict, verdict_of
from tables.format import csv_text, grid, number, spread
from tables.load import HERE
from tables.notes import FEW_STEPS_WARNING

LEDGER = "claims"
CLAIMS = HERE / "claims.toml"
MARKS = {HOLDS: f"**{HOLDS}**", FAILS: f"**{FAILS}**", UNTESTABLE: UNTESTABLE}
SUMMARY = ["Held", "The comparison that decides", "Difference or ratio; effect d", "The paper"]
CHECKS = ["Table", "Ours", "Against", "Metric", "Prompts", "Values", "Difference or ratio", "Effect", "n", "MACs"]
CHECKS += ["Outcome", "The paper"]
COUNTS = ["Table", "Metric", "Prompts", "Comparisons", "Better", "No difference", "Worse", "Missing"]
RIGHT = {"Values", "Effect", "n", "MACs", "Held", *COUNTS[3:]}
DECISIVE = ("table", "ours", "theirs", "dataset", "metric", "quantity", "ours_value", "theirs_value", "value", "low")
DECISIVE += ("high", "effect", "n", "over", "paper_metric", "paper_ours", "paper_theirs")
TITLE = "The ledger of claims"
TEXT = """
What the paper claims, and what the records of this repository say to it. A claim **holds here** where every comparison
below it that decides does, and **does not hold here** where one fails: a difference whose interval includes 0 is
*no difference*, and better it is not. It is **not testable here** where a record is missing, or where an interval
includes the margin that it is held against. The verdicts are computed from the records; none is written down.
"""
BEYOND = (
    "## Beyond the paper\n\nForecasting instead of holding, and Ours+, which learns when to compute and how.\n\n"
    f"{FEW_STEPS_WARNING}\n"
)
NOTES = (
    "*Held*: how many of the claim's comparisons hold. Of many some fail by chance, so read how many do.",
    "*The comparison that decides*: of those that gave the verdict, the one whose interval ends least inside, or "
    "farthest outside, of what the claim asks, relative to the value that it is held against.",
    "Difference: ours − theirs on the same prompts and noises [95 % interval]: a paired bootstrap over prompts; where "
    "a side is the mean of several trainings, a t interval over training seeds; of KID, unpaired, from the "
    "intervals of both.",
    "Effect: that difference in standard deviations of what its interval runs over (Cohen's d).",
    "Ratio (×): ours / theirs, with quartiles of the timed repeats where there are any.",
    "*The paper*: what it prints for the same two rows, ours / theirs, on its own model and prompts.",
    "MACs: all operations, ours / theirs. *Beside*: shown for the reader, decides nothing.",
)


def _values(result: Result) -> str:
    if result.ours_value is None:
        return "–"
    column = result.column
    return " / ".join(number(v, column.digits, column.scale) for v in (result.ours_value, result.theirs_value))


def _gives(result: Result) -> str:
    if result.value is None:
        return "–"
    if result.check.expect in DIFFERENCES:
        column = result.column
        return spread(result.value, result.low, result.high, column.digits, column.scale, True)
    return "× " + spread(result.value, result.low, result.high, 3, 1.0, False)


def _effect(result: Result) -> str:
    return "–" if result.effect is None else number(result.effect, 2, signed=True)


def _n(result: Result) -> str:
    return "" if result.n is None else f"{result.n} {result.over}"


def _paper(result: Result) -> str:
    if result.paper_ours is None:
        return ""
    shown = {column.metric: column for column in result.table.paper_column}.get(result.paper_metric)
    title, digits, scale = (shown.title, shown.digits, shown.scale) if shown else (result.paper_metric, 2, 1.0)
    values = " / ".join(number(value, digits, scale) for value in (result.paper_ours, result.paper_theirs))
    return f"*{title} {values}*"


def _table(result: Result) -> str:
    return result.table.name.removeprefix("table")


def _line(verdicts: Sequence[Verdict]) -> list[str]:
    """Return the row of a claim in the first table, from the claim's verdicts in all profiles."""
    here = verdicts[0]
    decisive = here.decisive
    printed = [decisive] if decisive and decisive.paper_ours is not None else here.results
    paper = next(filter(None, map(_paper, printed)), "")
    cells = ["; ".join(dict.fromkeys(result.reason for result in here.results if result.reason)), ""]
    if decisive:
        where = f"Table {_table(decisive)}" + (f", {decisive.prompts}" if decisive.prompts != ALL else "")
        pair = f"{decisive.ours.label} against {decisive.theirs.label}"
        effect = "" if decisive.effect is None else f"; d = {_effect(decisive)}"
        cells = [f"{decisive.column.title} {_values(decisive)}: {pair} ({where})", _gives(decisive) + effect]
    held = f"{here.count('holds')} of {here.count()}" if decisive else "–"
    return [here.claim.number, here.claim.text, *(MARKS[verdict.text] for verdict in verdicts), held, *cells, paper]


def _check_lines(results: Iterable[Result]) -> list[list[str]]:
    lines = []
    for result in results:
        outcome = result.outcome + (f": {result.word}" if result.word else "")
        lines.append(
            [
                _table(result),
                result.ours.label,
                result.theirs.label,
                result.column.title,
                result.prompts,
                _values(result),
                _gives(result),
                _effect(result),
                _n(result),
                "–" if result.macs_ratio is None else f"× {number(result.macs_ratio, 2)}",
                ("*beside* " if result.check.beside else "") + outcome,
                _paper(result),
            ]
        )
    return lines


def _count_lines(results: Sequence[Result]) -> list[list[str]]:
    groups: dict[tuple[str, str, str], list[str]] = {}
    for result in results:
        groups.setdefault((_table(result), result.column.title, result.prompts), []).append(result.word)
    counted = ("better", "no difference", "worse", "")  # a missing result has no word
    return [[*key, str(len(words)), *(str(words.count(word)) for word in counted)] for key, words in groups.items()]


def _section(verdict: Verdict) -> str:
    claim = verdict.claim
    text = f"### {claim.number}. {claim.text}\n\n{claim.source}. Here: {MARKS[verdict.text]}"
    text += f" ({verdict.reason}).\n" if verdict.reason else f", {verdict.count('holds')} of {verdict.count()} hold.\n"
    bounds = {(check.expect, check.bound): check.why for check in claim.check if check.why}
    notes = [f"*{expect.capitalize()}* ({bound:g}): {why}" for (expect, bound), why in bounds.items()]
    text += "\n" + "".join(f"- {note}\n" for note in (claim.note, *notes) if note)
    if named := [result for result in verdict.results if result.check in claim.check]:
        text += f"\n{grid(_check_lines(named), CHECKS, set(CHECKS) - RIGHT)}\n"
    if controls := [result for result in verdict.results if result.check not in claim.check]:
        text += f"\n{grid(_count_lines(controls), COUNTS, set(COUNTS) - RIGHT)}\n"
    return text


def markdown(by_profile: dict[str, list[Verdict]]) -> str:
    here = next(iter(by_profile.values()))
    headers = ["#", "Claim", *(f"{profile} profile".capitalize() for profile in by_profile), *SUMMARY]
    parts = [f"# {TITLE}\n{TEXT}"]
    for beyond, heading in ((False, ""), (True, f"{BEYOND}\n")):
        claims = [same for same in zip(*by_profile.values(), strict=True) if same[0].claim.beyond == beyond]
        holds, fails, neither = (sum(same[0].text == text for same in claims) for text in MARKS)
        counts = f"**{holds} hold, {fails} do not, {neither} not testable**"
        if claims:
            parts += [f"{heading}Of {len(claims)} claims, on the embedded profile: {counts}.\n"]
            parts += [grid(map(_line, claims), headers, set(headers) - RIGHT) + "\n"]
    parts.append("\n".join(f"- {note}" for note in NOTES) + "\n")
    for profile, verdicts in by_profile.items():
        measured = any(result.outcome != "missing" for verdict in verdicts for result in verdict.results)
        if verdicts is here or measured:
            parts += [f"## What each claim rests on, {profile} profile\n", *map(_section, verdicts)]
    return "\n".join(parts)


def _comparisons(verdicts: Iterable[Verdict]) -> list[dict[str, object]]:
    """Return the lines of the CSV of all comparisons."""
    return [_row(verdict, result) for verdict in verdicts for result in verdict.results]


def _row(verdict: Verdict, result: Result) -> dict[str, object]:
    """Return the line of the CSV for a comparison, in base units."""
    check = result.check
    names = ("ours_value", "theirs_value", "value", "low", "high", "effect", "n", "over", "macs_ratio", "outcome")
    names += ("word", "paper_metric", "paper_ours", "paper_theirs", "reason")
    return {
        "claim": verdict.claim.number,
        "profile": verdict.profile,
        "decides": "no" if check.beside else "yes",
        "table": check.table,
        "ours": " ".join(result.ours.runs),
        "theirs": " ".join(result.theirs.runs),
        "dataset": result.prompts,
        "metric": result.column.key,
        "expect": check.expect,
        "bound": check.bound,
        "quantity": "difference" if check.expect in DIFFERENCES else "ratio",
        **{name: getattr(result, name) for name in names},
    }


def _claims(verdicts: Iterable[Verdict]) -> list[dict[str, object]]:
    """Return the lines of the CSV of all claims."""
    rows = []
    for verdict in verdicts:
        decisive = _row(verdict, verdict.decisive) if verdict.decisive else {}
        rows.append(
            {
                "claim": verdict.claim.number,
                "text": verdict.claim.text,
                "source": verdict.claim.source,
                "profile": verdict.profile,
                "verdict": verdict.text,
                **{outcome: verdict.count(outcome) for outcome in ("holds", "fails", "undecided", "missing")},
                **{f"decided_by_{name}": decisive.get(name) for name in DECISIVE},
                "reason": verdict.reason,
            }
        )
    return rows


def render_claims(folder: Path, path: Path = CLAIMS) -> dict[str, str]:
    """Return the texts of the ledger's three files by name, from the records in `folder`."""
    claims = load_claims(path)
    by_profile: dict[str, list[Verdict]] = {}
    for profile in (name for name, each in PROFILES.items() if not each.unscored):
        evidence = Evidence(folder, profile)
        by_profile[profile] = [verdict_of(evidence, claim) for claim in claims]
    rows = [verdict for same in zip(*by_profile.values(), strict=True) for verdict in same]
    return {
        f"{LEDGER}.md": markdown(by_profile),
        f"{LEDGER}.csv": csv_text(_claims(rows)),
        f"{LEDGER}_comparisons.csv": csv_text(_comparisons(rows)),
    }
