"""Renders the ledger of claims as markdown and CSV: the verdict on every claim, and all comparisons behind it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.specs.profiles import DEFAULT, PROFILES
from benchmarks.specs.record import ALL
from tables.claims.claims import DIFFERENCES, load_claims
from tables.claims.verdicts import DECIDING, HOLDS, MISSING, UNTESTABLE, Evidence, Result, Verdict, verdict_of
from tables.format import csv_text, grid, number, spread
from tables.load import HERE
from tables.notes import FEW_STEPS_WARNING

LEDGER = "claims"
EVIDENCE = f"{LEDGER}_evidence.md"
CLAIMS = HERE / "claims.toml"
SUMMARY = ["#", "Claim", "Verdict", "Checks that hold", "The check that decides"]
CHECKS = ["Table", "Ours", "Against", "Metric", "Prompts", "Values", "Difference or ratio", "Effect", "n", "MACs"]
CHECKS += ["Outcome", "The paper"]
COUNTS = ["Table", "Metric", "Prompts", "Comparisons", "Better", "No difference", "Worse", "Missing"]
RIGHT = {"Values", "Effect", "n", "MACs", "Checks that hold", *COUNTS[3:]}
DECISIVE = ("table", "ours", "theirs", "dataset", "metric", "quantity", "ours_value", "theirs_value", "value", "low")
DECISIVE += ("high", "effect", "n", "over", "paper_metric", "paper_ours", "paper_theirs")
TEXT = f"""
# The ledger of claims

A claim **holds** if all its checks hold. It is **contradicted** if one check comes out against it, and **undecided** if
none does but the 95 % interval of one includes the limit that it is held against. It **cannot be tested here** without
the records. The verdicts are computed from the records of the zoo's models; none is written down.
[What each claim rests on]({EVIDENCE}) · [CSV]({LEDGER}.csv) · [all comparisons]({LEDGER}_comparisons.csv)
"""
HEADINGS = {
    False: "## Claims of the paper",
    True: "## Claims of this project: forecasting instead of holding, and Ours+, which learns when to compute and how",
}
NOTES = (
    "*Checks that hold*: of many, some fail by chance, so read how many hold.",
    "*The check that decides*: of those that gave the verdict, the one whose interval ends least inside, or farthest "
    "outside, of what the claim asks, relative to the value that it is held against.",
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


def _line(verdict: Verdict) -> list[str]:
    """Return the row of a claim on the page of verdicts."""
    decisive, claim = verdict.decisive, verdict.claim
    text = claim.text if claim.beyond else f"{claim.text} ({claim.source})"
    if decisive is None:
        return [claim.number, text, f"**{verdict.text}**", "–", verdict.reason]
    prompts = f", {decisive.prompts}" if decisive.prompts != ALL else ""
    pair = f"{decisive.ours.label} against {decisive.theirs.label} (Table {_table(decisive)}{prompts})"
    shown = f"{decisive.column.title} {_gives(decisive)}: {pair}"
    return [claim.number, text, f"**{verdict.text}**", f"{verdict.count(HOLDS)} of {verdict.count()}", shown]


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
    text = f"### {claim.number}. {claim.text}\n\n{claim.source}. Here: **{verdict.text}**"
    text += f" ({verdict.reason}).\n" if verdict.reason else f", {verdict.count(HOLDS)} of {verdict.count()} hold.\n"
    bounds = {(check.expect, check.bound): check.why for check in claim.check if check.why}
    notes = [f"*{expect.capitalize()}* ({bound:g}): {why}" for (expect, bound), why in bounds.items()]
    text += "\n" + "".join(f"- {note}\n" for note in (claim.note, *notes) if note)
    if named := [result for result in verdict.results if result.check in claim.check]:
        text += f"\n{grid(_check_lines(named), CHECKS, set(CHECKS) - RIGHT)}\n"
    if controls := [result for result in verdict.results if result.check not in claim.check]:
        text += f"\n{grid(_count_lines(controls), COUNTS, set(COUNTS) - RIGHT)}\n"
    return text


def page(by_profile: Mapping[str, Sequence[Verdict]]) -> str:
    """Return the page of verdicts: a line a claim, those of the paper apart from this project's."""
    parts = [TEXT.strip()]
    for profile, verdicts in by_profile.items():
        for beyond, heading in HEADINGS.items():
            claims = [verdict for verdict in verdicts if verdict.claim.beyond == beyond]
            counts = Counter(verdict.text for verdict in claims)
            counted = ", ".join(f"{text} {counts[text]}" for text in (*reversed(DECIDING), UNTESTABLE) if counts[text])
            if claims:
                parts += [heading + _aside(profile), f"{len(claims)} claims: **{counted}**."]
                parts += [FEW_STEPS_WARNING] * beyond
                parts.append(grid(map(_line, claims), SUMMARY, set(SUMMARY) - RIGHT))
    return "\n\n".join(parts) + "\n"


def evidence(by_profile: Mapping[str, Sequence[Verdict]]) -> str:
    """Return the page of what each claim rests on."""
    parts = ["# What each claim rests on\n", "\n".join(f"- {note}" for note in NOTES) + "\n"]
    for profile, verdicts in by_profile.items():
        parts += [f"## Claim by claim{_aside(profile)}\n", *map(_section, verdicts)]
    return "\n".join(parts)


def _aside(profile: str) -> str:
    return "" if profile == DEFAULT else f", {profile} profile"


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
                **{outcome: verdict.count(outcome) for outcome in (*DECIDING, MISSING)},
                **{f"decided_by_{name}": decisive.get(name) for name in DECISIVE},
                "reason": verdict.reason,
            }
        )
    return rows


def render_claims(folder: Path, path: Path = CLAIMS) -> dict[str, str]:
    """Return the texts of the ledger's files by name, from the records in `folder`.

    A profile that has measured nothing is left out, except for the default one.
    """
    claims = load_claims(path)
    by_profile: dict[str, list[Verdict]] = {}
    for profile in (name for name, each in PROFILES.items() if not each.unscored):
        records = Evidence(folder, profile)
        verdicts = [verdict_of(records, claim) for claim in claims]
        measured = any(result.outcome != MISSING for verdict in verdicts for result in verdict.results)
        if profile == DEFAULT or measured:
            by_profile[profile] = verdicts
    rows = [verdict for same in zip(*by_profile.values(), strict=True) for verdict in same]
    return {
        f"{LEDGER}.md": page(by_profile),
        EVIDENCE: evidence(by_profile),
        f"{LEDGER}.csv": csv_text(_claims(rows)),
        f"{LEDGER}_comparisons.csv": csv_text(_comparisons(rows)),
    }
