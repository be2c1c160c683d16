"""Renders the frontier: all contestants of every model at equal budgets, by what they lose and by what they cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.specs import record
from benchmarks.specs.profiles import DEFAULT
from benchmarks.specs.record import Record
from benchmarks.specs.suite import read_suite
from tables.format import Footnotes, csv_text, grid, number, spread
from tables.full import departed
from tables.load import SUITES, check_alike, other_settings
from tables.notes import origin
from tables.stats import paired_difference

FRONTIER = "frontier"
METRIC = "psnr"
"""What contestants are compared in, in dB; more is better."""
ROUNDING = 1e-9
UNMEASURED = f"not measured yet, run `nox -s reproduce-{FRONTIER}`"
LEFT = {"Contestant", "Model", "Nearest to the dense pictures", "Next"}
CSV_COLUMNS = ["model", "series", "budget", "run", "psnr", "n", "macs_share", "speedup", "schedules", "reason"]
NOTES = """\
- A column is a budget: the share of the dense run's MACs that is to be pruned. A row that spends over half a denoiser
  call more is in *italics* and leads nothing.
- PSNR is the mean over pictures to those of the dense run, from the same prompts and noises. The number in brackets
  is the share of the dense run's MACs that the row really spent, in all operations. Best of a budget: **bold**.
- Speedup is measured against the dense run in turn, from the prompt to the picture.
- A lead is paired by picture, with a 95 % bootstrap interval. Choosing the best of many on the same pictures favours
  the leader a little.
- Caches that decide while they draw have a schedule for each picture: *(k)* means that k different ones occurred."""


@dataclass(frozen=True)
class Entry:
    """A contestant of a model at one budget."""

    model: str
    series: str
    """The name of the contestant, which all its budgets share."""
    budget: str
    """The share of the dense run's MACs that is to be pruned, as the column has it."""
    run: str
    prompts: str
    """The prompt set that is scored."""
    record: Record | None
    """None where the run was not measured."""
    dense: Record | None
    """The record of the run whose pictures it is compared with."""

    def cell(self, metric: str) -> Mapping[str, Any] | None:
        """Return the record's cell of a metric; None where there is none."""
        return None if self.record is None else self.record.cell(self.prompts, metric)

    @property
    def samples(self) -> list[float]:
        """The metric of every picture."""
        return self.record.samples[self.prompts][METRIC]

    @property
    def share(self) -> float | None:
        """The share of the dense run's MACs, in all operations; None where it is not known."""
        spent, whole = self.cell("macs_full"), self.dense and self.dense.cell(self.prompts, "macs_full")
        return spent["value"] / whole["value"] if spent and whole else None

    @property
    def within(self) -> bool:
        """Whether it spends at most half a denoiser call more than its budget."""
        return (
            self.share is not None and self.share <= 1 - float(self.budget) + 0.5 / self.dense.spec["steps"] + ROUNDING
        )

    @property
    def reason(self) -> str:
        """Why there is no value."""
        absent = self.record.absent if self.record else {}
        return absent.get(METRIC, UNMEASURED)


def entries(suite: Path, folder: Path) -> list[Entry]:
    """Return the contestants of a suite, in its order, with their records.

    Raises `DipgoError` for records that cannot stand in one table.
    """
    rows = read_suite(suite)
    found = {run: done for run in rows if (done := record.find(folder, run)) is not None}
    check_alike(found)
    return [
        Entry(
            str(row["model"]),
            row["series"],
            row["budget"],
            run,
            row["prompts"][0],
            found.get(run),
            found.get(row["reference"]),
        )
        for run, row in rows.items()
        if "series" in row
    ]


def render_frontier(folder: Path, profile: str = DEFAULT, suite: Path = SUITES / f"{FRONTIER}.toml") -> dict[str, str]:
    """Return the texts of the page and of the CSV by name; nothing without a record, or for another profile."""
    known = entries(suite, folder) if profile == DEFAULT else []
    if not any(entry.record for entry in known):
        return {}
    marks = Footnotes()
    models = list(dict.fromkeys(entry.model for entry in known))
    parts = [f"# The frontier: who is nearest to the dense pictures at equal MACs\n\n{_leads(known, models)}\n"]
    for model in models:
        parts.append(_section(model, [entry for entry in known if entry.model == model], marks))
    measured = [done for entry in known for done in (entry.record, entry.dense) if done]
    devices, days, commits = origin(measured)
    parts.append("\n".join(["## Notes\n", NOTES, *(f"- {line}" for line in marks.lines)]) + "\n")
    others = departed(other_settings(read_suite(suite), {done.id: done for done in measured}))
    parts.append(f"Measured on {'; '.join(part for part in (devices, days, commits) if part)}.{others}\n")
    return {f"{FRONTIER}.md": "\n".join(parts), f"{FRONTIER}.csv": csv_text(map(_line, known), CSV_COLUMNS)}


def _ranked(known: Iterable[Entry]) -> list[Entry]:
    """Return the entries that have a value and are within their budget, the best first."""
    return sorted((e for e in known if e.cell(METRIC) and e.within), key=lambda e: -e.cell(METRIC)["value"])


def _leads(known: Sequence[Entry], models: Sequence[str]) -> str:
    """Return the table of who leads each model and budget, and by how much."""
    rows = []
    for model in models:
        for budget in sorted({entry.budget for entry in known if entry.model == model}):
            best, *others = _ranked(e for e in known if (e.model, e.budget) == (model, budget)) or [None]
            if best is None or not others:
                continue
            lead = paired_difference(best.samples, others[0].samples, f"{best.run} and {others[0].run}")
            rows.append(
                [
                    model,
                    budget,
                    best.series,
                    number(best.cell(METRIC)["value"], 1),
                    others[0].series,
                    spread(lead.value, lead.low, lead.high, 1, 1.0, True),
                ]
            )
    headers = ["Model", "Pruned", "Nearest to the dense pictures", "PSNR", "Next", "Lead, dB [95 %]"]
    return grid(rows, headers, LEFT)


def _section(model: str, known: Sequence[Entry], marks: Footnotes) -> str:
    """Return the tables of one model: PSNR with the MACs that were spent, and speedups."""
    budgets = sorted({entry.budget for entry in known})
    at = {(entry.series, entry.budget): entry for entry in known}
    best = {budget: next(iter(_ranked(e for e in known if e.budget == budget)), None) for budget in budgets}

    def quality(entry: Entry | None) -> str:
        if entry is None:
            return ""
        if not entry.cell(METRIC):
            return marks.mark(entry.reason)
        value, share = number(entry.cell(METRIC)["value"], 1), entry.share
        mark = "**" if entry is best[entry.budget] else "" if entry.within else "*"
        kinds = len(entry.record.decided)
        spent = f" ({share:.3f})".replace("(0.", "(.") if share is not None else ""
        return f"{mark}{value}{mark}{spent}" + (f" *({kinds})*" if kinds else "")

    def speed(entry: Entry | None) -> str:
        cell = entry and entry.cell("speedup_end_to_end")
        return number(cell["value"], 2) if cell else ""

    series = list(dict.fromkeys(entry.series for entry in known))
    tables = [
        (f"PSNR to dense at each budget, dB (MACs spent){_counted(known)}", quality),
        ("Speedup, from the prompt to the picture", speed),
    ]
    shown = [
        f"### {title}\n\n"
        + grid([[name, *(text(at.get((name, b))) for b in budgets)] for name in series], ["Contestant", *budgets], LEFT)
        for title, text in tables
    ]
    return "\n\n".join([f"## {model}", *shown]) + "\n"


def _counted(known: Iterable[Entry]) -> str:
    sizes = {entry.cell(METRIC)["n"] for entry in known if entry.cell(METRIC)}
    return f", n = {min(sizes)}" if sizes else ""


def _line(entry: Entry) -> dict[str, Any]:
    """Return the line of the CSV."""
    quality, speed = entry.cell(METRIC), entry.cell("speedup_end_to_end")
    return {
        "model": entry.model,
        "series": entry.series,
        "budget": entry.budget,
        "run": entry.run,
        "psnr": quality and quality["value"],
        "n": quality and quality["n"],
        "macs_share": entry.share,
        "speedup": speed and speed["value"],
        "schedules": len(entry.record.decided) or 1 if quality else None,
        "reason": None if quality else entry.reason,
    }
