"""The drawn pictures that the report shows, and the paper's figures that are made of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.specs.files import construct, read_toml
from benchmarks.specs.pictures import SHEETS, SIMILARITY, listed
from benchmarks.specs.record import ALL, Record
from tables.report.charts import Chart, heatmap
from tables.report.gates import picture_of

FIGURES = Path(__file__).parent / "figures.toml"
ALIKE = 30.0
"""The report calls pictures alike where their mean PSNR, in dB, is at least this."""
STEADY = 0.95
"""The report says that features hardly change where neighbouring steps have at least this mean cosine."""
NOT_DRAWN = "not drawn yet; nox -s report draws it"


@dataclass(frozen=True)
class Sheet:
    """The pictures of one run side by side."""

    label: str
    file: str = ""
    """The PNG beside the page; empty where `absent` says why there is none."""
    captions: tuple[str, ...] = ()
    psnr: tuple[float, ...] = ()
    """The PSNR of each picture to the dense one, in dB; empty for a dense run."""
    absent: str = ""


@dataclass(frozen=True)
class Figure:
    """One of the paper's figures, as `figures.toml` defines it."""

    number: int
    title: str
    runs: list[str]
    test: str
    """How it is told whether our figure shows what the paper's shows: a name in `TESTS`."""
    shows: str
    """What the paper's figure is there to show."""
    differs: str
    """In what ours is another thing."""


@dataclass(frozen=True)
class Shown:
    """A figure as the page shows it."""

    figure: Figure
    verdict: str
    sheets: list[Sheet]
    maps: list[str]
    """Gate maps, as data URLs."""
    charts: list[Chart]


class Drawn:
    """A folder of pictures that `python -m benchmarks pictures` has drawn. It may be empty."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sheets, self.similarity = (listed(folder / name) for name in (SHEETS, SIMILARITY))

    def sheet(self, label: str, item: Record | None) -> Sheet:
        """Return the sheet of a record under the label of its row."""
        line = self.sheets.get(item.file, {"absent": NOT_DRAWN}) if item else {"absent": "not measured"}
        if "sheet" in line and not (self.folder / line["sheet"]).is_file():
            line = {"absent": NOT_DRAWN}
        if "absent" in line:
            return Sheet(label, absent=line["absent"])
        return Sheet(label, line["sheet"], tuple(line["captions"]), tuple(line.get("psnr", ())))

    def copy(self, sheets: Iterable[Sheet], folder: Path) -> None:
        """Copy the files of sheets into the folder of the pages."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in {sheet.file for sheet in sheets if sheet.file}:
            shutil.copyfile(self.folder / name, folder / name)


def load_figures(path: Path = FIGURES) -> list[Figure]:
    """Return the paper's figures of results in their order."""
    return [construct(Figure, item, f"{path}: figure") for item in read_toml(path)["figure"]]


def figure(spec: Figure, records: Mapping[str, Record], drawn: Drawn, labels: Mapping[str, str]) -> Shown:
    """Return a figure with a sentence on whether it shows what the paper's shows.

    spec: the figure.
    records: the records of all tables by run id.
    drawn: the pictures.
    labels: the labels of rows by run id.
    """
    known = [records[run] for run in spec.runs if run in records]
    if len(known) < len(spec.runs):
        absent = ", ".join(run for run in spec.runs if run not in records)
        return Shown(spec, f"It cannot be shown: not measured yet are {absent}.", [], [], [])
    maps = [picture_of(item.schedule["reuse"]) for item in known if spec.test == "gates" and item.schedule]
    matrices = {item.file: drawn.similarity[item.file] for item in known if item.file in drawn.similarity}
    charts = [
        Chart(f"{one['model']}, {one['scheduler'].upper()}, {one['steps']} steps", heatmap(one["cosine"], file))
        for file, one in matrices.items()
    ]
    sheets = []
    if spec.test in ("alike", "nearest"):
        for item in known:
            seconds = item.cell(ALL, "seconds_end_to_end")
            took = f", {seconds['value']:.2g} s a picture" if seconds else ""
            sheets.append(drawn.sheet(labels.get(item.id, item.id) + took, item))
    verdict = TESTS[spec.test](known, list(matrices.values()))
    return Shown(spec, verdict, sheets, maps, charts if spec.test == "similarity" else [])


def _psnr(item: Record) -> float | None:
    """Return the mean PSNR to the dense pictures on the record's last prompt set."""
    cell = item.cell(item.spec["prompts"][-1], "psnr")
    return cell["value"] if cell else None


def _alike(records: Sequence[Record], _: Sequence[Mapping[str, Any]]) -> str:
    values = [value for value in map(_psnr, records[1:]) if value is not None]
    if not values:
        return "Whether it does cannot be said: PSNR was not measured."
    shown = ", ".join(f"{value:.1f}" for value in values)
    answer = "It shows the same" if min(values) >= ALIKE else "It does not show the same"
    if min(values) < ALIKE <= max(values):
        answer = "It shows the same in part"
    return f"{answer}: the mean PSNR to the dense pictures is {shown} dB, and from {ALIKE:g} dB on we call them alike."


def _nearest(records: Sequence[Record], _: Sequence[Mapping[str, Any]]) -> str:
    other, ours = (_psnr(item) for item in records[1:])
    if other is None or ours is None:
        return "Whether it does cannot be said: PSNR was not measured."
    answer = "It shows the same" if ours >= other else "It does not show the same"
    return f"{answer}: the mean PSNR to the dense pictures is {ours:.1f} dB for ours and {other:.1f} dB for DeepCache."


def _gates(records: Sequence[Record], _: Sequence[Mapping[str, Any]]) -> str:
    rows = records[0].schedule["reuse"]
    halves = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    first, second = (fmean(row.count("1") / len(row) for row in half) for half in halves)
    return (
        f"Whether the pattern is the paper's cannot be said, since its schedule is not published. Here {first:.0%} of "
        f"the blocks are reused in the first half of the calls and {second:.0%} in the second."
    )


def _similarity(records: Sequence[Record], matrices: Sequence[Mapping[str, Any]]) -> str:
    if len(matrices) < len(records):
        return f"It cannot be shown: {NOT_DRAWN}."
    values = [fmean(row[call + 1] for call, row in enumerate(one["cosine"][:-1])) for one in matrices]
    answer = "It shows the same" if min(values) >= STEADY else "It does not show the same"
    shown = " and ".join(
        f"{value:.3f} for {one['model']} over {one['steps']} steps" for value, one in zip(values, matrices, strict=True)
    )
    return f"{answer}: the mean cosine between neighbouring steps is {shown}; from {STEADY:g} on we call them steady."


TESTS: Mapping[str, Callable[[Sequence[Record], Sequence[Mapping[str, Any]]], str]] = {
    "alike": _alike,
    "nearest": _nearest,
    "gates": _gates,
    "similarity": _similarity,
}
"""How it is told whether a figure shows what the paper's shows."""
