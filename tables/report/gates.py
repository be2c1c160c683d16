"""The gate maps of the report: which blocks a schedule computes at which call."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from PIL import Image

from benchmarks.specs.record import ALL, Record
from tables.figures.pareto import load_spec, series_of
from tables.measured import Measured
from tables.report.charts import kind_of, load_kinds

COMPUTED, REUSED = (58, 134, 200, 255), (128, 128, 128, 40)
NEAR = 0.05
"""Schedules stand together whose shares of pruned MACs round to the same multiple of this."""


@dataclass(frozen=True)
class GateMap:
    """The picture of one schedule, which one or more rows follow."""

    labels: list[str]
    picture: str
    """A PNG as a data URL: a column a call, a row a block."""
    pruned: float
    """The share of the MACs that the schedule prunes."""
    kind: int
    """The place of its method among the kinds of the report."""


@dataclass(frozen=True)
class Budget:
    """Gate maps of one model that prune about as much."""

    title: str
    maps: list[GateMap]


@dataclass(frozen=True)
class Wall:
    """The gate maps of one model and sampler."""

    title: str
    blocks: list[str]
    """The names of the blocks, from the top of each map to its bottom."""
    budgets: list[Budget]


def picture_of(reuse: Sequence[str]) -> str:
    """Return the map of a schedule's rows of reuse as a PNG in a data URL, a pixel a block and call."""
    image = Image.new("RGBA", (len(reuse), len(reuse[0])))
    for call, row in enumerate(reuse):
        for block, reused in enumerate(row):
            image.putpixel((call, block), REUSED if reused == "1" else COMPUTED)
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


def walls(measured: Iterable[Measured], profile: str) -> list[Wall]:
    """Return the maps of all schedules in the records by model and sampler, with those of a like budget together.

    measured: the tables with their records.
    profile: the profile of the records.
    """
    kinds, series = load_kinds(), load_spec(profile).series
    maps: dict[tuple[str, ...], dict[str, GateMap]] = {}
    blocks: dict[tuple[str, ...], list[str]] = {}
    for label, item in _scheduled(measured):
        schedule, spec = item.schedule, item.spec
        sites, calls = schedule["sites"], len(schedule["reuse"])
        of_calls = len(sites) == 1
        what = "whole calls" if of_calls else f"{len(sites)} blocks"
        key = (f"{spec['model']}, {spec['scheduler'].upper()}, {calls} calls", what)
        blocks[key] = ["the whole denoiser"] if of_calls else [site.partition(":")[0] for site in sites]
        known = maps.setdefault(key, {})
        if item.schedule_digest in known:
            if label not in known[item.schedule_digest].labels:
                known[item.schedule_digest].labels.append(label)
            continue
        cell = item.cell(ALL, "pruned_ratio")
        pruned = cell["value"] if cell else 0.0
        place = kinds.index(kind_of(series_of(item, series), kinds))
        known[item.schedule_digest] = GateMap([label], picture_of(schedule["reuse"]), pruned, place)
    return [
        Wall(", ".join(key), blocks[key], _budgets(sorted(of_key.values(), key=lambda shown: shown.kind)))
        for key, of_key in sorted(maps.items())
    ]


def _scheduled(measured: Iterable[Measured]) -> Iterable[tuple[str, Record]]:
    """Yield each record that has a schedule, with the label of its row."""
    for each in measured:
        for row in each.table.rows:
            for run in row.runs:
                if run in each.records and each.records[run].schedule is not None:
                    yield row.label, each.records[run]


def _budgets(maps: Sequence[GateMap]) -> list[Budget]:
    by_share: dict[int, list[GateMap]] = {}
    for shown in maps:
        by_share.setdefault(round(shown.pruned / NEAR), []).append(shown)
    return [Budget(f"about {share * NEAR:.0%} of the MACs pruned", by_share[share]) for share in sorted(by_share)]
