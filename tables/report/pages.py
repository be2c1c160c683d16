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

from benchmarks.specs.files import write_text
from benchmarks.specs.profiles import DEFAULT
from tables.claims.ledger import LEDGER, render_claims
from tables.figures.pareto import COSTS, load_points, load_spec
from tables.front import headline, summary
from tables.full import measured_on
from tables.load import names
from tables.measured import Measured, measure
from tables.notes import notes
from tables.render import csv_of
from tables.report.charts import charts
from tables.report.grids import provenance, rows_of

TEMPLATES = Path(__file__).parent / "templates"
LINK = re.compile(r"\[([^\]]+)\]\(\w+\.(?:md|csv)[^)]*\)( · )?")
PLOTLY = "plotly.min.js"


@dataclass(frozen=True)
class Sources:
    """What a report is made from."""

    records: Path
    """The folder of the records of all profiles."""
    profile: str = DEFAULT
    tables: tuple[str, ...] = tuple(names())
    """The names of the tables that have a page."""

    @cached_property
    def measured(self) -> list[Measured]:
        """The tables with their records."""
        return [measure(name, self.records, self.profile) for name in self.tables]

    @cached_property
    def ledger(self) -> str:
        """The page of verdicts on the claims, as markdown without its title."""
        return render_claims(self.records)[f"{LEDGER}.md"].lstrip().partition("\n")[2]


def html(text: str) -> Markup:
    """Return markdown as HTML, with its tables in boxes that scroll. Links to other rendered files are left out."""
    made = markdown(LINK.sub("", text), extensions=["tables", "sane_lists"])
    return Markup(made.replace("<table>", '<div class="box"><table>').replace("</table>", "</table></div>"))


def _index(sources: Sources) -> dict[str, Any]:
    found = [(each.table, html(headline(each))) for each in sources.measured]
    verdicts = Counter(re.findall(r"\| \*\*(\w[\w ]*)\*\* ", sources.ledger))
    return {"title": "dipgo: what was measured", "findings": found, "verdicts": verdicts}


def _table(measured: Measured) -> dict[str, Any]:
    table = measured.table
    return {
        "title": table.title,
        "summary": html(summary(measured)),
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
    pages |= {each.table.name: ("table.html", _table(each)) for each in sources.measured}
    for cost, title in COSTS.items():
        against = title.partition(",")[0].split()[-1]
        shown = {"title": f"Quality against {against}", "models": charts(spec, lines, cost, sources.profile)}
        pages[f"pareto_{cost}"] = ("pareto.html", shown)
    pages[LEDGER] = ("text.html", {"title": "The ledger of claims", "text": html(sources.ledger)})
    shared = {
        "links": [(f"{name}.html", _short(shown["title"], name)) for name, (_, shown) in pages.items()],
        "scripts": [PLOTLY],
    }
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
