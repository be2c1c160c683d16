"""Panels of points and their fronts, drawn as SVG and PNG. Knows no records; the same panels give the same bytes."""

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

INCHES = 2.7, 2.3  # a panel's width and height; the first row is taller
FIRST = 1.4
STYLE = {
    "font.family": "DejaVu Sans",  # matplotlib's own
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
    """Runs of one method, as fields of their specs tell (`match`), and how their points look."""

    title: str
    colour: str
    marker: str
    match: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Point:
    """`cost`, a share of the dense run's, and `quality`, each with low and high where it has them; `front`: no other
    point of the panel is better and cheaper."""

    series: str
    cost: tuple[float, float | None, float | None]
    quality: tuple[float, float | None, float | None]
    front: bool


@dataclass(frozen=True)
class Panel:
    """`direction`: "up" where more quality is better, else "down"; better is drawn higher in both cases. `fence`: leave
    out what is so many interquartile ranges worse than the lower quartile; None shows all."""

    title: str
    label: str
    direction: str
    fence: float | None
    points: Sequence[Point]


def bounds(values: Sequence[float], direction: str, fence: float | None) -> tuple[float, float]:
    """The lower and the upper end of a panel's axis, the worse end first."""
    sign = 1 if direction == "up" else -1
    better = sign * np.asarray(values, dtype=float)
    low, high = np.quantile(better, (0.25, 0.75))
    worst = better.min() if fence is None else better[better >= low - fence * (high - low)].min()
    margin = 0.07 * (better.max() - worst) or 1.0
    return float(sign * (worst - margin)), float(sign * (better.max() + margin))


def draw(grid: Sequence[Sequence[Panel]], series: Sequence[Series], cost: str, source: str) -> dict[str, bytes]:
    """The panels, with one legend, by file ending: "svg" and "png". `source` goes into their metadata."""
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
        figure.set_layout_engine("none")  # both files take the layout found here
        return {kind: _save(figure, kind, source) for kind in ("svg", "png")}


def _panel(ax: Axes, panel: Panel, series: Sequence[Series]) -> None:
    ax.set_ylabel(panel.label + ("" if panel.direction == "up" else ", axis inverted"))
    if not panel.points:
        ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", color="#999999")
        ax.set_yticks([])
        return
    worst, best = bounds([point.quality[0] for point in panel.points], panel.direction, panel.fence)
    ax.set_ylim(worst, best)
    for each in series:
        points = sorted((p for p in panel.points if p.series == each.title), key=lambda point: point.cost[0])
        ax.plot(
            [p.cost[0] for p in points], [p.quality[0] for p in points], color=each.colour, linewidth=0.8, alpha=0.35
        )
        for point in points:
            _point(ax, point, each, worst, panel.direction)
    kept = sorted((p.cost[0], p.quality[0]) for p in panel.points if p.front)
    kept.append((max(1.0, kept[-1][0]), kept[-1][1]))  # nothing more costly is better
    ax.plot(*zip(*kept, strict=True), drawstyle="steps-post", zorder=1, **FRONT)


def _point(ax: Axes, point: Point, series: Series, worst: float, direction: str) -> None:
    cost, quality = point.cost[0], point.quality[0]
    hidden = quality < worst if direction == "up" else quality > worst
    look = _look(series)
    if hidden:
        ax.plot(cost, worst, **look | HOLLOW, clip_on=False)
        return
    if point.front:
        look |= {"markeredgecolor": "black"}
    faint = to_rgba(series.colour, 0.45)  # many bars may stand on one cost
    ax.errorbar(cost, quality, _reach(point.quality), _reach(point.cost), elinewidth=0.7, ecolor=faint, **look)


def _reach(value: tuple[float, float | None, float | None]) -> list[list[float]] | None:
    """The lengths of an error bar below and above a value."""
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
    handles = [Line2D([], [], label=each.title, **_look(each)) for each in series if each.title in present]
    handles.append(Line2D([], [], label="Front: no point is better and cheaper", **FRONT))
    left_out = {"marker": "o", "markeredgecolor": "#666666", "linestyle": "none"} | HOLLOW
    handles.append(Line2D([], [], label="On the lower edge: worse than the panel shows", **left_out))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))


def _save(figure: Figure, kind: str, source: str) -> bytes:
    """No dates and no versions, so that the bytes are the same again."""
    dropped = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=150, metadata=dropped | {"Description": source})
    return buffer.getvalue()
