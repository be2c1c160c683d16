"""Writes the report: a folder of pages that open from the disk, without a server and without the network."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown import markdown
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from benchmarks import ROOT
from benchmarks.specs.files import write_text
from benchmarks.specs.profiles import DEFAULT
from tables.claims.ledger import LEDGER, render_claims
from tables.figures.pareto import COSTS, load_points, load_spec
from tables.front import front_runs, headline, summary
from tables.full import measured_on
from tables.load import load_paper, load_table, names
from tables.measured import Measured, measure
from tables.notes import notes
from tables.render import csv_of
from tables.report.charts import charts, searches
from tables.report.gates import walls
from tables.report.grids import provenance, rows_of, trainings
from tables.report.pictures import Drawn, Sheet, Shown, figure, load_figures

TEMPLATES = Path(__file__).parent / "templates"
LINK = re.compile(r"\[([^\]]+)\]\(\w+\.(?:md|csv)[^)]*\)( · )?")
PLOTLY = "plotly.min.js"


@dataclass(frozen=True)
class Sources:
    """What a report is made from."""

    records: Path
    """The folder of the records of all profiles."""
    profile: str = DEFAULT
    pictures: Path = ROOT / "runs" / "pictures"
    """The folder of drawn pictures; it may be missing."""
    tables: tuple[str, ...] = tuple(names())
    """The names of the tables that have a page."""

    @cached_property
    def measured(self) -> list[Measured]:
        """The tables with their records."""
        return [measure(name, self.records, self.profile) for name in self.tables]

    @cached_property
    def drawn(self) -> Drawn:
        """The pictures that were drawn."""
        return Drawn(self.pictures)

    @cached_property
    def figures(self) -> list[Shown]:
        """The paper's figures of results."""
        records = {run: item for each in self.measured for run, item in each.records.items()}
        labels = {row.run: row.label for each in reversed(self.measured) for row in each.table.rows}
        return [figure(spec, records, self.drawn, labels) for spec in load_figures()]

    def sheets(self, measured: Measured) -> list[Sheet]:
        """Return the sheets of the rows on a table's first page, in its order."""
        table = measured.table
        runs = front_runs(table, measured.paper)
        return [self.drawn.sheet(table.find_row(run).label, measured.records.get(run)) for run in runs]

    @cached_property
    def ledger(self) -> str:
        """The page of verdicts on the claims, as markdown without its title."""
        return render_claims(self.records)[f"{LEDGER}.md"].lstrip().partition("\n")[2]


def shown_runs(profile: str = DEFAULT) -> list[str]:
    """Return the ids of the runs whose pictures the report shows: those on the first pages of the tables."""
    paper = load_paper()
    tables = [load_table(name, profile=profile) for name in names()]
    of_tables = [run for table in tables for run in front_runs(table, paper)]
    return list(dict.fromkeys([*of_tables, *(run for spec in load_figures() for run in spec.runs)]))


def html(text: str) -> Markup:
    """Return markdown as HTML, with its tables in boxes that scroll. Links to other rendered files are left out."""
    made = markdown(LINK.sub("", text), extensions=["tables", "sane_lists"])
    return Markup(made.replace("<table>", '<div class="box"><table>').replace("</table>", "</table></div>"))


def _index(sources: Sources) -> dict[str, Any]:
    found = [(each.table, html(headline(each))) for each in sources.measured]
    verdicts = Counter(re.findall(r"\| \*\*(\w[\w ]*)\*\* ", sources.ledger))
    return {"title": "dipgo: what was measured", "findings": found, "verdicts": verdicts}


def _courses(sources: Sources) -> dict[str, Any]:
    traced = {
        f"{row.label} ({row.run})": each.records[row.run]
        for each in sources.measured
        for row in each.table.rows
        if row.run in each.records and each.records[row.run].trace
    }
    chart, took = searches(traced), trainings(sources.measured)
    return {"title": "Searches and trainings", "chart": chart, "trainings": took}


def _table(measured: Measured, sheets: list[Sheet]) -> dict[str, Any]:
    table = measured.table
    return {
        "title": table.title,
        "summary": html(summary(measured)),
        "sheets": sheets,
        "grids": [rows_of(measured, dataset) for dataset in table.dataset],
        "notes": [html(note) for note in notes(table)],
        "origin": html(measured_on(table, measured.records)),
        "provenance": provenance(measured),
        "csv": f"{table.name}.csv",
    }


def write(sources: Sources, folder: Path) -> Path:
    """Write the report's pages into a folder and return the path of the first page.

    sources: what the report is made from.
    folder: it is made where it does not exist. Files of the same names are replaced.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    spec = load_spec(sources.profile)
    lines, _ = load_points(spec, sources.records, sources.profile)
    pages: dict[str, tuple[str, dict[str, Any]]] = {"index": ("index.html", _index(sources))}
    sheets = {each.table.name: sources.sheets(each) for each in sources.measured}
    pages |= {each.table.name: ("table.html", _table(each, sheets[each.table.name])) for each in sources.measured}
    for cost, title in COSTS.items():
        against = title.partition(",")[0].split()[-1]
        shown = {"title": f"Quality against {against}", "models": charts(spec, lines, cost, sources.profile)}
        pages[f"pareto_{cost}"] = ("pareto.html", shown)
    pages["figures"] = ("figures.html", {"title": "The paper's figures", "figures": sources.figures})
    pages["gates"] = ("gates.html", {"title": "Gate maps", "walls": walls(sources.measured, sources.profile)})
    pages["courses"] = ("courses.html", _courses(sources))
    pages[LEDGER] = ("text.html", {"title": "The ledger of claims", "text": html(sources.ledger)})
    shared = {
        "links": [(f"{name}.html", _short(shown["title"], name)) for name, (_, shown) in pages.items()],
        "scripts": [PLOTLY],
    }
    every = [*sheets.values(), *(shown.sheets for shown in sources.figures)]
    sources.drawn.copy((sheet for some in every for sheet in some), folder)
    for each in sources.measured:
        write_text(folder / f"{each.table.name}.csv", csv_of(each))
    for name, (template, shown) in pages.items():
        write_text(folder / f"{name}.html", environment.get_template(template).render(**shared, **shown, page=name))
    for name in ("style.css", "sort.js"):
        write_text(folder / name, (TEMPLATES / name).read_text("utf-8"))
    write_text(folder / PLOTLY, get_plotlyjs())
    return folder / "index.html"


def _short(title: str, name: str) -> str:
    """Return what the navigation calls a page."""
    return {"index": "Overview", LEDGER: "Claims"}.get(name, title.partition(":")[0])
