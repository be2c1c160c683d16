"""Renders quality against cost: every measured row of some tables is a point, and the undominated ones are a front."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from benchmarks.specs.files import construct, flat, read_toml
from benchmarks.specs.profiles import DEFAULT, place, profiled
from benchmarks.specs.record import Record
from dipgo.errors import DipgoError, unknown
from tables.cells import table_cells
from tables.figures.figure import Panel, Point, Series, draw
from tables.format import csv_text
from tables.load import HERE, load_paper, load_records, load_table
from tables.spec import Column, Group, Row, Table
from tables.stats import mean_interval

PARETO = "pareto"
SPEC = HERE / "pareto.toml"
COSTS = {"macs": "Full MACs, % of dense", "seconds": "Denoiser seconds, % of dense"}
"""The title of each figure's x axis, by the ending of the figure's name."""
COST_COLUMNS = ("macs_full", "speedup_denoiser")
"""The columns that give the two costs."""
STAMP = "points sha256:"


@dataclass(frozen=True)
class Family:
    """A column of panels: the rows of one table on one prompt set."""

    title: str
    table: str
    dataset: str
    """The name of the prompt set."""
    also: tuple[str, ...] = ()
    """Runs of other tables that were measured against the same dense run. They are shown, too."""


@dataclass(frozen=True)
class Quality:
    """A row of panels: one metric of quality."""

    columns: tuple[str, ...]
    """A panel shows the first of these columns that its table has."""
    fence: float | None = None
    """What a panel leaves out, see `figure.Panel`."""


@dataclass(frozen=True)
class Spec:
    """The figure as `pareto.toml` defines it."""

    families: tuple[Family, ...]
    qualities: tuple[Quality, ...]
    series: tuple[Series, ...]


@dataclass(frozen=True)
class Line:
    """A line of the CSV: the quality of a run in one metric, and its costs."""

    family: str
    dataset: str
    series: str
    row: str
    metric: str
    value: float
    low: float | None
    """The low end of the 95 % interval of `value`."""
    high: float | None
    n: int | None
    run: str
    """The name of the record's file."""
    macs: float | None = None
    """The MACs as a share of the dense run's."""
    seconds: float | None = None
    """The denoiser's seconds as a share of the dense run's."""
    seconds_low: float | None = None
    """The lower quartile of `seconds` over the repeats."""
    seconds_high: float | None = None
    front: str = ""
    """The costs, separated by a space, at which the run is on the front of its panel."""


def load_spec(profile: str = DEFAULT, path: Path = SPEC) -> Spec:
    """Return the figure's spec in a profile.

    Raises `DipgoError` for an unknown or missing field, and where a method might belong to no series.
    """
    data = profiled(read_toml(path), profile)
    families, qualities, series = (
        tuple(construct(cls, item, f"{path}: {key}") for item in data.get(key, []))
        for key, cls in (("family", Family), ("quality", Quality), ("series", Series))
    )
    if not series or series[-1].match:
        raise DipgoError(f"{path}: the last series must have an empty `match`, so that it takes all remaining methods")
    return Spec(families, qualities, series)


def front(points: Sequence[tuple[float, float]], direction: str) -> list[bool]:
    """Tell whether each point is on the front: no other point costs at most as much, is at least as good, and is better
    in one of the two. Points are (cost, quality)."""
    sign = 1 if direction == "up" else -1
    signed = [(cost, sign * quality) for cost, quality in points]
    return [
        not any(c <= cost and q >= quality and (c, q) != (cost, quality) for c, q in signed) for cost, quality in signed
    ]


def _table(family: Family, columns: Sequence[Column | None], table: Table) -> Table:
    """Return the family's table, reduced to the family's prompt set and the figure's columns, with `also` as further
    rows."""
    datasets = {dataset.key: dataset for dataset in table.dataset}
    if family.dataset not in datasets:
        raise DipgoError(f"{SPEC}: {table.name}: {unknown('dataset', family.dataset, datasets)}")
    return replace(
        table,
        dataset=(datasets[family.dataset],),
        shown=tuple(column for column in columns if column),
        csv_only=tuple(map(table.find_column, COST_COLUMNS)),
        group=(*table.group, Group("", tuple(Row(run, run=run, baseline=table.baseline) for run in family.also))),
        fact=(),
    )


def series_of(record: Record, series: Sequence[Series]) -> str:
    """Return the title of the first series whose `match` holds for the run's spec. A spec's None counts as ""."""
    fields = {key: "" if value is None else value for key, value in flat(record.spec).items()}
    return next(item.title for item in series if item.match.items() <= fields.items())


def _lines(family: Family, series: Sequence[Series], table: Table, records: Mapping[str, Record]) -> Iterator[Line]:
    """Return the lines of the CSV for one family: the table's dense run and the runs that are measured against it."""
    cells = {(cell.row, cell.metric): cell for cell in table_cells(table, records, load_paper(), [])}
    full, speedup = COST_COLUMNS
    dense = cells[table.find_row(table.baseline).label, full].value
    for row in table.rows:
        record = records.get(row.run)
        if record is None or (record.spec["reference"] or record.id) != table.baseline:
            continue
        macs, fast = cells[row.label, full].value, cells[row.label, speedup]
        costs = {"macs": macs / dense if macs and dense else None}
        if fast.value:
            quartiles = (1 / (fast.high or fast.value), 1 / (fast.low or fast.value))
            costs |= dict(zip(("seconds", "seconds_low", "seconds_high"), (1 / fast.value, *quartiles), strict=True))
        names = (family.table, family.dataset, series_of(record, series), row.label)
        for column in table.shown:
            cell = cells[row.label, column.key]
            value, low, high = cell.value, cell.low, cell.high
            if row.run == table.baseline and column.key == f"{table.difference}_diff":
                value = 0.0  # the dense run does not differ from itself
            samples = record.samples.get(family.dataset, {}).get(column.key, ())
            if low is None and len(samples) > 1:
                low, high = mean_interval(samples)
            if value is not None and any(costs.values()):
                yield Line(*names, column.key, value, low, high, cell.n, record.file, **costs)


def _fronts(lines: Sequence[Line], direction: str) -> list[Line]:
    """Return the lines of one panel with their field `front` filled in."""
    fronts: list[list[str]] = [[] for _ in lines]
    for cost in COSTS:
        costs = {index: getattr(line, cost) for index, line in enumerate(lines) if getattr(line, cost) is not None}
        points = [(share, lines[index].value) for index, share in costs.items()]
        for index, undominated in zip(costs, front(points, direction), strict=True):
            fronts[index] += [cost] * undominated
    return [replace(line, front=" ".join(names)) for line, names in zip(lines, fronts, strict=True)]


def _panel(family: Family, quality: Quality, column: Column | None, lines: Sequence[Line], cost: str) -> Panel:
    if column is None:
        return Panel(family.title, "", "up", None, [])
    points = [
        Point(
            line.series,
            (getattr(line, cost), getattr(line, f"{cost}_low", None), getattr(line, f"{cost}_high", None)),
            (line.value, line.low, line.high),
            cost in line.front.split(),
        )
        for line in lines
        if getattr(line, cost) is not None
    ]
    return Panel(family.title, column.title, column.direction, quality.fence, points)


def stamp(content: bytes) -> bytes | None:
    """Return the stamp in a picture's metadata, which says what the picture was drawn from; None if it has none."""
    match = re.search(STAMP.encode() + rb"[0-9a-f]{16}", content)
    return match and match[0]


def source_of(text: str, profile: str = DEFAULT, path: Path = SPEC) -> str:
    """Return the stamp of pictures of the points in a CSV. It hashes the CSV and what the spec says for the profile.

    The way the spec is written does not matter: a new comment leaves the stamp as it is.
    """
    parsed = json.dumps(profiled(read_toml(path), profile), sort_keys=True)
    return STAMP + hashlib.sha256((text + parsed).encode()).hexdigest()[:16]


def load_points(spec: Spec, folder: Path, profile: str = DEFAULT) -> tuple[list[Line], dict[str, list[list[Panel]]]]:
    """Return the lines of the CSV, and the rows of panels of each cost's figure.

    spec: the figure.
    folder: holds the records of all profiles.
    profile: the profile whose records are shown.
    """
    lines: list[Line] = []
    grids: dict[str, list[list[Panel]]] = {cost: [[] for _ in spec.qualities] for cost in COSTS}
    for family in spec.families:
        table = load_table(family.table, profile=profile)
        known = {column.key: column for column in table.column}
        columns = [next((known[key] for key in quality.columns if key in known), None) for quality in spec.qualities]
        table = _table(family, columns, table)
        of_family = list(_lines(family, spec.series, table, load_records(table, place(profile, folder))))
        for index, (column, quality) in enumerate(zip(columns, spec.qualities, strict=True)):
            of_panel = [line for line in of_family if column and line.metric == column.key]
            of_panel = _fronts(of_panel, column.direction) if column else []
            lines += of_panel
            for cost, grid in grids.items():
                grid[index].append(_panel(family, quality, column, of_panel, cost))
    return lines, grids


def render_pareto(folder: Path, profile: str = DEFAULT, path: Path = SPEC) -> dict[str, str | bytes]:
    """Return the contents of the files by name: a CSV of all points, and for each cost a figure as SVG and PNG.

    folder: holds the records of all profiles.
    profile: the profile whose records are shown. The result is empty if there is no point.
    path: the file of the spec.
    """
    spec = load_spec(profile, path)
    lines, grids = load_points(spec, folder, profile)
    if not lines:
        return {}
    text = csv_text(map(vars, lines), [field.name for field in fields(Line)])
    source = source_of(text, profile, path)
    pictures = {
        f"{PARETO}_{cost}.{kind}": picture
        for cost, grid in grids.items()
        for kind, picture in draw(grid, spec.series, COSTS[cost], source).items()
    }
    return {f"{PARETO}.csv": text, **pictures}
