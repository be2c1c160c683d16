"""The texts that a rendered table shows besides its cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.specs.profiles import PROFILES
from benchmarks.specs.record import Record
from tables.spec import Table

NOTES = (
    "† a row of our own, not in the paper's table.",
    "↑ higher is better, ↓ lower is better. `ref.`: the row that the others of its group are measured against.",
    "The CSV beside this file holds the same cells in base units (MACs, seconds), more metrics, and every control, not "
    "the best alone.",
)
APART_NOTE = (
    "The columns headed {paper_model} are the paper's, measured on another model and other prompts: compare how a "
    "column falls, not its values."
)
INLINE_NOTE = (
    "In brackets: what the paper prints for the row. ✓ our value is within {agrees} of it, ≠ it is not. Without a mark "
    "the two are not of one thing, and the CSV says in what they differ: speedups are of another device, a pruned "
    "row's MACs of another schedule than the paper's, which is not published."
)
FEW_STEPS_WARNING = (
    "**Read the few-step controls with care.** They are PLMS, DDIM, DPM-Solver++ 2M and UniPC on their default "
    "grids, and stronger stock configurations exist. On the first 50 held-out captions of emoji-sd, DEIS with "
    "Karras sigmas comes to 36.1 dB at 10 calls, where the best control here comes to 30.5 and Ours+ to 39.9. On "
    "emoji-dit, DEIS with Karras sigmas comes to 52.5 and 51.1 dB at 50 and 25 calls, and Ours+ to 54.2 and 51.4. "
    "Rows of tuned few steps will replace this warning."
)
SEEDS_NOTE = (
    "±: the row was trained {n} times, with {n} seeds; mean and sample standard deviation over the trainings, without "
    "the latter where it rounds to 0. An interval of such a row runs over training seeds, on the same prompts and "
    "noises (95 % t interval, Welch's between two such rows; a row of one run counts as a fixed value), every other "
    "one over prompts."
)


def notes(table: Table) -> list[str]:
    """Return the notes below a table: those of its spec, those of all tables, and those of its columns."""
    general = [NOTES[0], NOTES[1], _paper_note(table), NOTES[2]]
    if trainings := {len(row.runs) for row in table.rows if row.seeds}:
        general.append(SEEDS_NOTE.format(n=", ".join(map(str, sorted(trainings)))))
    compared = [key for contest in table.compare for key in (*contest.metrics, *contest.beside)]
    columns = dict.fromkeys((*table.shown, *map(table.find_column, compared)))
    return [*table.notes, *general, *(column.note for column in columns if column.note)]


def commit_of(stamp: Mapping[str, Any]) -> str:
    """Return the commit of a provenance, and whether the tree had changes; empty if it knows no commit."""
    return str(stamp["commit"])[:10] + (" with changes" if stamp.get("dirty") else "") if "commit" in stamp else ""


def origin(records: Iterable[Record]) -> tuple[str, str, str]:
    """Return the devices, the first and last day, and the commits of records. A part that no record knows is ""."""
    stamps = [record.provenance for record in records]
    days = sorted(str(stamp["date"])[:10] for stamp in stamps if "date" in stamp)
    commits = set(map(commit_of, stamps)) - {""}
    devices = {str(stamp["device"]) for stamp in stamps if "device" in stamp}
    return (
        ", ".join(sorted(devices)),
        " to ".join(dict.fromkeys([days[0], days[-1]])) if days else "",
        f"commit {', '.join(sorted(commits))}" if commits else "",
    )


def _paper_note(table: Table) -> str:
    """Return the note that says where the paper's values stand and what they may be compared with."""
    if not PROFILES[table.profile].paper_models:
        return APART_NOTE.format(paper_model=table.paper_model)
    agrees: dict[float, list[str]] = {}
    for column in table.shown:
        if column.paper and not column.apart:
            agrees.setdefault(column.agrees, []).append(column.title)
    within = ", ".join(f"{share:.1%} ({', '.join(titles)})" for share, titles in agrees.items())
    return INLINE_NOTE.format(agrees=within)
