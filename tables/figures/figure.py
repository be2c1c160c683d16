"""Draws panels of points and their fronts as SVG and PNG. The same panels give the same bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

INCHES = 2.7, 2.3  # a panel's width and height
FIRST = 1.4  # the first row of panels is this much taller
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#eeeeee",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "dipgo",
}
HOLLOW = {"markerfacecolor": "white", "markeredgewidth": 0.9}
FRONT = {"color": "#bbbbbb", "linewidth": 3.5, "alpha": 0.6}
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # shares of the dense run's cost


@dataclass(frozen=True)
class Series:
    """Runs of one kind, whose points look alike."""

    title: str
    colour: str
    marker: str
    match: Mapping[str, Any] = field(default_factory=dict)
    """A run belongs to the series if its spec has these values. Keys of nested fields are dotted."""


@dataclass(frozen=True)
class Point:
    """One run in one panel."""

    series: str
    """The title of its series."""
    cost: tuple[float, float | None, float | None]
    """Its cost as a share of the dense run's, and the low and high end of its error bar, if it has one."""
    quality: tuple[float, float | None, float | None]
    """Its quality, with the same two ends."""
    front: bool
    """Whether no other point of the panel is better and cheaper."""


@dataclass(frozen=True)
class Panel:
    """One pair of axes: quality against cost."""

    title: str
    label: str
    """The label of the y axis."""
    direction: str
    """Which end of the metric is better, "up" or "down". The better end is drawn on top."""
    fence: float | None
    """Points that are worse than the lower quartile by more than this many interquartile ranges are drawn hollow, on
    the lower edge. None shows all points where they are."""
    points: Sequence[Point]


def bounds(values: Sequence[float], direction: str, fence: float | None) -> tuple[float, float]:
    """Return the two ends of a panel's y axis, the worse end first. `direction` and `fence` are as in `Panel`."""
    sign = 1 if direction == "up" else -1
    better = sign * np.asarray(values, dtype=float)
    low, high = np.quantile(better, (0.25, 0.75))
    worst = better.min() if fence is None else better[better >= low - fence * (high - low)].min()
    margin = 0.07 * (better.max() - worst) or 1.0
    return float(sign * (worst - margin)), float(sign * (better.max() + margin))


def draw(grid: Sequence[Sequence[Panel]], series: Sequence[Series], cost: str, source: str) -> dict[str, bytes]:
    """Return the picture of the panels with one legend, by file ending: "svg" and "png".

    grid: the panels by row and column. All rows are equally long.
    series: the series that the points belong to, in the order of the legend.
    cost: the label of the x axis.
    source: what the picture was drawn from. It goes into the metadata.
    """
    with rc_context(STYLE):
        rows, columns = len(grid), len(grid[0])
        figure = Figure(figsize=(INCHES[0] * columns, INCHES[1] * (rows - 1 + FIRST) + 1.1), layout="constrained")
        heights = [FIRST] + [1] * (rows - 1)
        axes = figure.subplots(rows, columns, sharex=True, squeeze=False, height_ratios=heights)
        for row, panels in enumerate(grid):
            for column, panel in enumerate(panels):
                _panel(axes[row, column], panel, series)
                if not row:
                    axes[row, column].set_title(panel.title)
        _cost_axis(axes[0, 0], [point.cost[0] for panels in grid for panel in panels for point in panel.points])
        for ax in axes[-1]:
            ax.set_xlabel(cost)
        _legend(figure, grid, series)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # both files share this layout
        return {kind: _save(figure, kind, source) for kind in ("svg", "png")}


def _panel(ax: Axes, panel: Panel, series: Sequence[Series]) -> None:
    ax.set_ylabel(panel.label + ("" if panel.direction == "up" else ", axis inverted"))
    if not panel.points:
        ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", color="#999999")
        ax.set_yticks([])
        return
    worst, best = bounds([point.quality[0] for point in panel.points], panel.direction, panel.fence)
    ax.set_ylim(worst, best)
    for item in series:
        points = sorted((p for p in panel.points if p.series == item.title), key=lambda point: point.cost[0])
        ax.plot(
            [p.cost[0] for p in points], [p.quality[0] for p in points], color=item.colour, linewidth=0.8, alpha=0.35
        )
        for point in points:
            _point(ax, point, item, worst, panel.direction)
    front = sorted((p.cost[0], p.quality[0]) for p in panel.points if p.front)
    front.append((max(1.0, front[-1][0]), front[-1][1]))  # no run of higher cost is better
    ax.plot(*zip(*front, strict=True), drawstyle="steps-post", zorder=1, **FRONT)


def _point(ax: Axes, point: Point, series: Series, worst: float, direction: str) -> None:
    cost, quality = point.cost[0], point.quality[0]
    look = _look(series)
    if quality < worst if direction == "up" else quality > worst:
        ax.plot(cost, worst, **look | HOLLOW, clip_on=False)
        return
    if point.front:
        look |= {"markeredgecolor": "black"}
    faint = to_rgba(series.colour, 0.45)  # many bars may overlap at one cost
    ax.errorbar(cost, quality, _reach(point.quality), _reach(point.cost), elinewidth=0.7, ecolor=faint, **look)


def _reach(value: tuple[float, float | None, float | None]) -> list[list[float]] | None:
    """Return the lengths of the error bar below and above a value; None if it has no error bar."""
    middle, low, high = value
    return None if low is None or high is None else [[max(0.0, middle - low)], [max(0.0, high - middle)]]


def _look(series: Series) -> dict[str, Any]:
    return {
        "linestyle": "none",
        "marker": series.marker,
        "color": series.colour,
        "markersize": 5.5,
        "markeredgewidth": 0.6,
        "markeredgecolor": series.colour,
    }


def _cost_axis(ax: Axes, costs: Sequence[float]) -> None:
    ax.set_xscale("log")
    ax.set_xlim(0.85 * min(costs, default=0.1), 1.12 * max(costs, default=1.0))
    ax.xaxis.set_major_locator(FixedLocator(TICKS))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.0f}"))


def _legend(figure: Figure, grid: Sequence[Sequence[Panel]], series: Sequence[Series]) -> None:
    present = {point.series for panels in grid for panel in panels for point in panel.points}
    handles = [Line2D([], [], label=item.title, **_look(item)) for item in series if item.title in present]
    handles.append(Line2D([], [], label="Front: no point is better and cheaper", **FRONT))
    left_out = {"marker": "o", "markeredgecolor": "#666666", "linestyle": "none"} | HOLLOW
    handles.append(Line2D([], [], label="On the lower edge: worse than the panel shows", **left_out))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))


def _save(figure: Figure, kind: str, source: str) -> bytes:
    """Return the bytes of a picture file. Its metadata hold no date and no version, so that the bytes can be made
    again."""
    dropped = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=150, metadata=dropped | {"Description": source})
    return buffer.getvalue()
