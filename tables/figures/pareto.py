"""Quality against cost: the records of the tables as points, those that nothing dominates, and the figures of them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pandas as pd

from benchmarks.specs.files import construct, flat, read_toml
from benchmarks.specs.record import Record
from benchmarks.specs.run import profiled
from dipgo.errors import DipgoError, unknown
from tables.figures.figure import Panel, Point, Series, draw
from tables.load import HERE, folder_of, load_paper, load_records, load_table
from tables.measure import measure
from tables.spec import EMBEDDED, Column, Group, Row, Table
from tables.stats import mean_interval

PARETO = "pareto"
SPEC = HERE / "pareto.toml"
COSTS = {"macs": "Full MACs, % of dense", "seconds": "Denoiser seconds, % of dense"}
"""What a figure's x axis shows, by the ending of its name."""
COST_COLUMNS = ("macs_full", "speedup_denoiser")
STAMP = "points sha256:"


@dataclass(frozen=True)
class Family:
    """A column of panels: a table's rows on one prompt set, and runs of other tables with the same dense run."""

    title: str
    table: str
    dataset: str
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Quality:
    """A row of panels: the first of the columns that a table has; `fence` as in `figure.Panel`."""

    columns: tuple[str, ...]
    fence: float | None = None


@dataclass(frozen=True)
class Spec:
    families: tuple[Family, ...]
    qualities: tuple[Quality, ...]
    series: tuple[Series, ...]


@dataclass(frozen=True)
class Line:
    """A line of the CSV: a run's quality in a metric with its 95 % interval, and its costs as shares of the dense
    run's. `seconds_low` and `seconds_high` are quartiles over the repeats. `front` names the costs at which no other
    run is as good."""

    family: str
    dataset: str
    series: str
    row: str
    metric: str
    value: float
    low: float | None
    high: float | None
    n: int | None
    run: str
    macs: float | None = None
    seconds: float | None = None
    seconds_low: float | None = None
    seconds_high: float | None = None
    front: str = ""


def load_spec(profile: str = EMBEDDED, path: Path = SPEC) -> Spec:
    """Raises `DipgoError` for an unknown or missing field, or where a method might belong to no series."""
    data = profiled(read_toml(path), profile)
    families, qualities, series = (
        tuple(construct(cls, item, f"{path}: {key}") for item in data.get(key, []))
        for key, cls in (("family", Family), ("quality", Quality), ("series", Series))
    )
    if not series or series[-1].match:
        raise DipgoError(f"{path}: the last series must have an empty `match`, for methods that no other takes")
    return Spec(families, qualities, series)


def front(points: Sequence[tuple[float, float]], direction: str) -> list[bool]:
    """For every (cost, quality): whether no other is at most as costly and at least as good, and better in one."""
    sign = 1 if direction == "up" else -1
    signed = [(cost, sign * quality) for cost, quality in points]
    return [
        not any(c <= cost and q >= quality and (c, q) != (cost, quality) for c, q in signed) for cost, quality in signed
    ]


def _table(family: Family, columns: Sequence[Column | None], table: Table) -> Table:
    """The family's table with the rows `also`, its one prompt set, and no columns but those that the figure needs."""
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


def _series(record: Record, series: Sequence[Series]) -> str:
    """The first series that a run's spec matches; a field that the spec leaves open is ""."""
    fields = {key: "" if value is None else value for key, value in flat(record.spec).items()}
    return next(each.title for each in series if each.match.items() <= fields.items())


def _lines(family: Family, series: Sequence[Series], table: Table, records: Mapping[str, Record]) -> Iterator[Line]:
    """A family's part of the CSV: the table's dense run and the runs that are measured against it."""
    cells = {(cell.row, cell.metric): cell for cell in measure(table, records, load_paper(), [])}
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
        names = (family.table, family.dataset, _series(record, series), row.label)
        for column in table.shown:
            cell = cells[row.label, column.key]
            value, low, high = cell.value, cell.low, cell.high
            if row.run == table.baseline and column.key == f"{table.difference}_diff":
                value = 0.0  # what it differs from itself
            samples = record.samples.get(family.dataset, {}).get(column.key, ())
            if low is None and len(samples) > 1:
                low, high = mean_interval(samples)
            if value is not None and any(costs.values()):
                yield Line(*names, column.key, value, low, high, cell.n, record.file, **costs)


def _fronts(lines: Sequence[Line], direction: str) -> list[Line]:
    """The lines of one panel, each with the costs at which nothing dominates it."""
    on: list[list[str]] = [[] for _ in lines]
    for cost in COSTS:
        there = [index for index, line in enumerate(lines) if getattr(line, cost) is not None]
        points = [(getattr(lines[index], cost), lines[index].value) for index in there]
        for index, kept in zip(there, front(points, direction), strict=True):
            on[index] += [cost] * kept
    return [replace(line, front=" ".join(names)) for line, names in zip(lines, on, strict=True)]


def _panel(family: Family, quality: Quality, column: Column | None, lines: Sequence[Line], cost: str) -> Panel:
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
    if column is None:
        return Panel(family.title, "", "up", None, [])
    return Panel(family.title, column.title, column.direction, quality.fence, points)


def stamp(content: bytes) -> bytes | None:
    """What a picture's own metadata say that it was drawn from."""
    found = re.search(STAMP.encode() + rb"[0-9a-f]{16}", content)
    return found and found[0]


def load_points(spec: Spec, folder: Path, profile: str = EMBEDDED) -> tuple[list[Line], dict[str, list[list[Panel]]]]:
    """The lines of the CSV, and by cost the rows of panels of its figure, from the records of the profile."""
    lines: list[Line] = []
    grids: dict[str, list[list[Panel]]] = {cost: [[] for _ in spec.qualities] for cost in COSTS}
    for family in spec.families:
        table = load_table(family.table, profile=profile)
        own = {column.key: column for column in table.column}
        columns = [next((own[key] for key in each.columns if key in own), None) for each in spec.qualities]
        table = _table(family, columns, table)
        found = list(_lines(family, spec.series, table, load_records(table, folder_of(profile, folder))))
        for index, (column, quality) in enumerate(zip(columns, spec.qualities, strict=True)):
            chosen = [line for line in found if column and line.metric == column.key]
            marked = _fronts(chosen, column.direction) if column else []
            lines += marked
            for cost, grid in grids.items():
                grid[index].append(_panel(family, quality, column, marked, cost))
    return lines, grids


def csv_text(lines: Sequence[Line]) -> str:
    """The tidy CSV: qualities in their metric's units, costs as shares."""
    frame = pd.DataFrame([vars(line) for line in lines], columns=[field.name for field in fields(Line)])
    return frame.astype({"n": "Int64"}).to_csv(index=False, float_format="%.6g", lineterminator="\n")


def render_pareto(folder: Path, profile: str = EMBEDDED, path: Path = SPEC) -> dict[str, str | bytes]:
    """File name -> content: the CSV of all points, and for each cost a figure as SVG and PNG; nothing where there is no
    point."""
    spec = load_spec(profile, path)
    lines, grids = load_points(spec, folder, profile)
    if not lines:
        return {}
    text = csv_text(lines)
    source = STAMP + hashlib.sha256((text + path.read_text(encoding="utf-8")).encode()).hexdigest()[:16]
    pictures = {
        f"{PARETO}_{cost}.{kind}": picture
        for cost, grid in grids.items()
        for kind, picture in draw(grid, spec.series, COSTS[cost], source).items()
    }
    return {f"{PARETO}.csv": text, **pictures}
