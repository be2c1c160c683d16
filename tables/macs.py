"""Renders the counts of `tables/macs.json` as `macs.md` and `macs.csv`, beside the MACs that the paper prints."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dipgo.errors import DipgoError
from tables.format import csv_text, grid
from tables.load import HERE, load_paper

MACS = "macs"
COUNTS = HERE / "macs.json"
AGREES = 0.002  # relative distance to the printed value
GROUPED = ("4", "6")  # the tables in which only the group tells some rows apart
KEYS = ("table", "group", "method", "dataset")
HEADERS = ("Row", "Run", "Printed T", "Paper's convention T", "Off by", "In full T", "Verdict")
LEFT = {"Row", "Run", "Model", "Verdict"}
NOTES = (
    "*Paper's convention*: convolutions and linear layers of one guidance branch, one call a step; DiT with attention "
    "products, PixArt-alpha with both branches. That is how the printed cells come out.",
    "*In full*: attention products, every guidance branch, every call (PLMS makes 51 for 50 steps).",
    "*agrees*: within 0.2 % of the printed value. The paper rounds some cells and cuts off others (0.2 x 16.94 is "
    "printed as 3.38), which alone may be 0.15 % of the smallest.",
    "A pruned row's MACs depend on a schedule that is not published. Its cell, in italics, is the dense run's times "
    "1 - ratio, and *agrees* where the printed value's own ratio to the dense run is nearer to the row's than "
    "Algorithm 1's tolerance ({tolerance}); in full it depends on which blocks are pruned, and is left out.",
    "*not derivable*: no reading of the row gives the printed value; all that were tried are listed.",
    "*no ratio*: the paper prints none for this row, so there is nothing to hold the cell against but itself.",
)


@dataclass(frozen=True)
class MacsLine:
    """A line of the CSV: a printed cell, or one way to read it, in MACs of one image."""

    table: str
    group: str
    row: str
    run: str
    printed: float
    macs_paper: float | None
    """The MACs as the paper counts them; None if there is no count, as for `macs_full`."""
    macs_full: float | None
    """The MACs with all operations counted."""
    ratio: float | None
    """The pruned share that the row names; None if it names none."""
    printed_ratio: float | None
    """The pruned share that follows from the printed cell and the dense run's; None if the cell was counted."""
    verdict: str


def read_counts(path: Path = COUNTS) -> dict[str, Any]:
    """Return the counts of `python -m benchmarks macs`. Raises `DipgoError` if the file is absent or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DipgoError(f"{path}: no counts ({error}); make them with `python -m benchmarks macs`") from error


def _agrees(value: float, printed: float) -> bool:
    return abs(value - printed) <= AGREES * printed


def _run(cell: Mapping[str, Any]) -> str:
    settings = [f"{key} {value}" for key, value in cell["params"].items() if key != "variant"]
    method = [] if cell["plan"] in ("dense", "bk_sdm") else [cell["plan"].replace("_", " ")]
    ratio = [] if cell["ratio"] is None else [f"{cell['ratio']:.2f}"]
    return ", ".join([cell["model"], f"{cell['scheduler']} {cell['steps']}", *method, *settings, *ratio])


def macs_lines(counts: Mapping[str, Any], paper: pd.DataFrame) -> list[MacsLine]:
    """Return the lines of the CSV, from the counts and the paper's values.

    Raises `DipgoError` if the paper does not print a counted cell, or if a MACs cell of the paper is not counted.
    """
    macs = paper[paper["metric"] == "macs"].set_index(list(KEYS))["value"]
    if (doubled := macs.index[macs.index.duplicated()]).size:
        raise DipgoError(f"paper.csv prints two MACs values for {doubled[0]}; drop one")
    readings: dict[tuple, list[Mapping[str, Any]]] = {}
    for cell in counts["cells"]:
        readings.setdefault(tuple(cell[key] for key in KEYS), []).append(cell)
    for names in readings:
        if names not in macs.index:
            raise DipgoError(f"macs.toml: the paper prints no MACs for {names}; mend the cell's names")
    rows = {names[:3] for names in readings}
    for names in macs.index:
        if names[:3] not in rows:  # the same row may be printed for two data sets
            raise DipgoError(f"macs.toml: no cell for {names}; add it")
    return [line for names, cells in readings.items() for line in _lines(names, cells, macs[names], counts)]


def _lines(
    names: tuple, cells: Sequence[Mapping[str, Any]], printed: float, counts: Mapping[str, Any]
) -> Iterator[MacsLine]:
    agree = ["macs_paper" in cell and _agrees(cell["macs_paper"], printed) for cell in cells]
    differs = "differs" if len(cells) == 1 or any(agree) else "not derivable"
    for cell, agrees in zip(cells, agree, strict=True):
        ratio, printed_ratio = cell["ratio"], None
        value, verdict = cell.get("macs_paper"), "agrees" if agrees else differs
        if "macs_paper" not in cell:
            printed_ratio = 1 - printed / cell["dense_paper"]
            value = None if ratio is None else cell["dense_paper"] * (1 - ratio)
            near = ratio is not None and abs(printed_ratio - ratio) < counts["tolerance"]
            verdict = "agrees" if near else "no ratio" if ratio is None else "differs"
        yield MacsLine(*names[:3], _run(cell), printed, value, cell.get("macs_full"), ratio, printed_ratio, verdict)


def _cells(line: MacsLine) -> list[str]:
    def tera(value: float | None) -> str:
        return "–" if value is None else f"{value / 1e12:.3f}"

    value = tera(line.macs_paper)
    if line.printed_ratio is not None:
        value, off = value if line.macs_paper is None else f"*{value}*", f"printed ratio {line.printed_ratio:.4f}"
    else:
        off = f"{100 * (line.macs_paper / line.printed - 1):+.2f} %".replace("-", "−")
    label = f"{line.row} ({line.group})" if line.table in GROUPED else line.row
    return [label, line.run, f"{line.printed / 1e12:.2f}", value, off, tera(line.macs_full), line.verdict]


def markdown(counts: Mapping[str, Any], lines: Sequence[MacsLine]) -> str:
    """Return the page: all tables, the MACs of one call of the models, and notes."""
    verdicts = [line.verdict for line in lines]
    summary = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(sorted(verdicts)))
    text = f"# MACs of the paper's tables, counted without weights\n\n{len(lines)} lines: {summary}.\n"
    for table in dict.fromkeys(line.table for line in lines):
        rows = [_cells(line) for line in lines if line.table == table]
        text += f"\n## Table {table}\n\n{grid(rows, HEADERS, LEFT)}\n"
    calls = [
        [name, *(f"{cell[key] / 1e9:.2f}" for key in ("paper", "full"))] for name, cell in counts["models"].items()
    ]
    headers = ("Model", "Paper's convention G", "In full, one branch G")
    notes = "\n".join(f"- {note.format(tolerance=counts['tolerance'])}" for note in NOTES)
    return f"{text}\n## One call\n\n{grid(calls, headers, LEFT)}\n\n## Notes\n\n{notes}\n"


def render_macs(path: Path = COUNTS) -> dict[str, str]:
    """Return the texts of both files by name, from the counts in `path`."""
    counts = read_counts(path)
    lines = macs_lines(counts, load_paper())
    return {"macs.md": markdown(counts, lines), "macs.csv": csv_text(map(asdict, lines))}
