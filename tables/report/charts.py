"""The charts of the report: quality against cost, with one model and one measure a chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import plotly.graph_objects as go

from benchmarks.specs.files import construct, read_toml
from benchmarks.specs.record import Record
from tables.figures.figure import TICKS, bounds
from tables.figures.pareto import COSTS, Line, Quality, Spec, front
from tables.load import load_table
from tables.spec import Column

KINDS = Path(__file__).parent / "kinds.toml"
DENSE = "Dense"
"""The series of dense runs, which is a line in each chart and belongs to no kind."""
GREY = "rgba(128, 128, 128, 0.25)"
CONFIG = {"responsive": True, "displayModeBar": False}


@dataclass(frozen=True)
class Kind:
    """Series that look alike in the report."""

    title: str
    colour: str
    symbol: str
    series: list[str]
    """The titles of the series; the kind that names none takes all that no other kind names."""
    size: int = 9


@dataclass(frozen=True)
class Chart:
    """A chart as HTML, with what stands above it."""

    title: str
    html: str


@cache
def load_kinds(path: Path = KINDS) -> list[Kind]:
    """Return the kinds of methods, in the order of the legend."""
    return [construct(Kind, item, f"{path}: kind") for item in read_toml(path)["kind"]]


def kind_of(series: str, kinds: Sequence[Kind]) -> Kind:
    """Return the kind of a series of the Pareto figure."""
    return next((kind for kind in kinds if series in kind.series), next(kind for kind in kinds if not kind.series))


def html(figure: go.Figure, name: str) -> str:
    """Return a figure as HTML that needs the script of Plotly on its page. `name` is unique on the page."""
    return figure.to_html(full_html=False, include_plotlyjs=False, div_id=name, config=CONFIG)


def layout(figure: go.Figure, height: int) -> go.Figure:
    """Give a figure the look of the report: no background, a legend below, text in the colours of the page."""
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 45, "r": 12, "t": 16, "b": 45},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"size": 12},
        hoverlabel={"align": "left"},
        legend={"orientation": "h", "y": -0.22, "yanchor": "top", "bgcolor": "rgba(0,0,0,0)"},
    )
    figure.update_xaxes(gridcolor=GREY, zeroline=False, linecolor=GREY)
    figure.update_yaxes(gridcolor=GREY, zeroline=False, linecolor=GREY)
    return figure


def _hover(line: Line, column: Column, cost: str) -> str:
    digits, scale = column.digits, column.scale
    interval = "" if line.low is None else f" [{line.low * scale:.{digits}f}, {line.high * scale:.{digits}f}]"
    return (
        f"<b>{line.row}</b><br>{column.title}: {line.value * scale:.{digits}f}{interval}"
        f"<br>{COSTS[cost]}: {100 * getattr(line, cost):.1f}<br>{line.run}"
    )


def pareto(lines: Sequence[Line], column: Column, cost: str, fence: float | None, name: str) -> str:
    """Return the HTML of one chart.

    lines: the points of one family in one metric.
    column: the column of the metric.
    cost: one of `COSTS`.
    fence: what the shown range leaves out, see `tables.figures.figure.Panel`.
    name: the id of the chart, which no other chart of its page has.
    """
    figure, kinds = go.Figure(), load_kinds()
    shown = [line for line in lines if getattr(line, cost) is not None]
    for kind in reversed(kinds):  # the first is drawn last, and so on top
        points = [line for line in shown if line.series != DENSE and kind_of(line.series, kinds) is kind]
        points.sort(key=lambda line: getattr(line, cost))
        if not points:
            continue
        xy = [(100 * getattr(line, cost), line.value * column.scale) for line in points]
        best = [pair for pair, on in zip(xy, front(xy, column.direction), strict=True) if on]
        group = {"legendgroup": kind.title, "legendrank": 1 + kinds.index(kind), "hoverinfo": "skip"}
        width = 3 if kind is kinds[0] else 1.5
        figure.add_scatter(
            x=[x for x, _ in best],
            y=[y for _, y in best],
            mode="lines",
            line={"color": kind.colour, "width": width},
            showlegend=False,
            **group,
        )
        figure.add_scatter(
            x=[x for x, _ in xy],
            y=[y for _, y in xy],
            mode="markers",
            name=kind.title,
            marker={"color": kind.colour, "symbol": kind.symbol, "size": kind.size},
            text=[_hover(line, column, cost) for line in points],
            **group | {"hoverinfo": "text"},
        )
    values = [line.value * column.scale for line in shown]
    for dense in (line for line in shown if line.series == DENSE):
        y = dense.value * column.scale
        line = {"color": "#888888", "dash": "dot"}
        figure.add_hline(y=y, line=line, annotation_text="dense", annotation_position="top left")
    ticks = {"tickvals": [100 * tick for tick in TICKS], "ticktext": [f"{100 * tick:g}" for tick in TICKS]}
    figure.update_xaxes(type="log", title=COSTS[cost], **ticks)
    figure.update_yaxes(range=list(bounds(values, column.direction, fence)))
    return html(layout(figure, 430), name)


def charts(spec: Spec, lines: Sequence[Line], cost: str, profile: str) -> dict[str, list[Chart]]:
    """Return the charts of one cost by the title of their model.

    spec: the Pareto figure.
    lines: its points, from `load_points`.
    cost: one of `COSTS`.
    profile: the profile of the points.
    """
    by_model: dict[str, list[Chart]] = {}
    for family in spec.families:
        known = {column.key: column for column in load_table(family.table, profile=profile).column}
        made = []
        for quality in spec.qualities:
            column = _column(quality, known)
            of_panel = [line for line in lines if column and (line.family, line.metric) == (family.table, column.key)]
            if any(getattr(line, cost) is not None for line in of_panel):
                name = f"{family.table}-{column.key}-{cost}"
                better = "higher is better" if column.direction == "up" else "lower is better, so the axis is inverted"
                made.append(Chart(f"{column.title} ({better})", pareto(of_panel, column, cost, quality.fence, name)))
        if made:
            by_model[family.title.replace("\n", ", ")] = made
    return by_model


def _column(quality: Quality, known: dict[str, Column]) -> Column | None:
    return next((known[key] for key in quality.columns if key in known), None)


def searches(records: Mapping[str, Record]) -> str:
    """Return the chart of the courses of searches by the label of their row; empty where no record holds one."""
    figure = go.Figure()
    for label, item in records.items():
        x, y = zip(*item.trace, strict=True)
        figure.add_scatter(x=x, y=y, name=label, mode="lines+markers", line={"shape": "hv"}, marker={"size": 5})
    figure.update_xaxes(title="Evaluations")
    figure.update_yaxes(type="log")
    return html(layout(figure, 480), "searches") if records else ""


def heatmap(values: Sequence[Sequence[float]], name: str) -> str:
    """Return the chart of how alike each two steps are. `name` is the id of the chart on its page."""
    figure = go.Figure(go.Heatmap(z=values, colorscale="Viridis", hovertemplate="%{x}, %{y}: %{z:.3f}<extra></extra>"))
    figure.update_xaxes(title="Step")
    return html(layout(figure, 400), name)
