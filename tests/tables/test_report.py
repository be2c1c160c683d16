"""The report in a real browser: the pages load, sort and show what they hold."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tables.figures.pareto import load_spec
from tables.report.charts import DENSE, load_kinds
from tables.report.pages import Sources, write
from tests.tables.test_tables import write_all

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs Chromium; Debian has it as `chromium`")
MOST_BYTES = 15_000_000


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    records = write_all(folder / "records")
    write(Sources(records, tables=("table1",)), folder / "pages")
    return folder / "pages"


def browse(page: Path, script: str = "") -> tuple[str, list[str]]:
    """The document of a page after it was loaded and a script ran in it, and what the browser's console said."""
    if script:
        changed = page.with_name(f"{page.stem}_changed.html")
        changed.write_text(page.read_text("utf-8").replace("</body>", f"<script>{script}</script></body>"), "utf-8")
        page = changed
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    flags += ["--virtual-time-budget=5000", f"--user-data-dir={page.parent.parent / 'browser'}"]
    try:
        done = subprocess.run([BROWSER, *flags, page.as_uri()], capture_output=True, text=True, timeout=120)
    finally:
        if script:
            page.unlink()
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def column(document: str, index: int) -> list[str]:
    """The texts of one column of the first sortable table."""
    body = re.search(r'<table class="sortable">.*?<tbody>(.*?)</tbody>', document, re.S)[1]
    return [re.findall(r"<td[^>]*>(.*?)</td>", row)[index] for row in re.findall(r"<tr>(.*?)</tr>", body, re.S)]


def test_the_folder_is_small_and_asks_for_nothing_from_elsewhere(report):
    assert sum(path.stat().st_size for path in report.glob("*.*")) < MOST_BYTES
    for page in report.glob("*.html"):
        text = page.read_text("utf-8")
        for target in re.findall(r'(?:src|href)="([^"]*)"', text):
            assert target.startswith("data:") or (report / target.partition("#")[0]).is_file(), (page.name, target)


@needs_browser
@pytest.mark.parametrize("name", ["index", "table1", "claims", "pareto_macs", "pareto_seconds"])
def test_a_page_loads_without_a_word_on_the_console(report, name):
    broken = "document.title = [...document.images].filter((i) => !i.naturalWidth).length + ' broken'"
    document, console = browse(report / f"{name}.html", f"onload = () => {{ {broken} }}")
    assert console == [] and "<title>0 broken</title>" in document
    assert ("<svg" in document) == name.startswith("pareto")


@needs_browser
def test_a_wrong_page_would_be_seen(report):
    assert browse(report / "index.html", "nowhere()")[1]


@needs_browser
def test_a_click_on_a_header_sorts_and_a_second_one_turns_the_order_round(report):
    document, _ = browse(report / "table1.html")
    macs = column(document, 2)
    click = "document.querySelectorAll('table.sortable th button')[2].click();"
    once, twice = (column(browse(report / "table1.html", click * times)[0], 2) for times in (1, 2))
    values = [float(text) for text in macs]
    assert [float(text) for text in once] == sorted(values) != values
    assert [float(text) for text in twice] == sorted(values, reverse=True)


@needs_browser
def test_absent_values_come_last_in_both_orders(report):
    psnr = 2 + 7  # the row, its group, and seven columns before it
    click = f"document.querySelectorAll('table.sortable th button')[{psnr}].click();"
    for times in (1, 2):
        assert column(browse(report / "table1.html", click * times)[0], psnr)[-1] == "ref."


def test_every_series_of_the_figure_is_of_one_kind():
    kinds = load_kinds()
    named = [series for kind in kinds for series in kind.series]
    assert len(kinds) <= 6 and len(set(named)) == len(named) and sum(not kind.series for kind in kinds) == 1
    assert set(named) <= {series.title for series in load_spec().series} - {DENSE}
    assert "Ours" in kinds[0].series and kinds[0].size == max(kind.size for kind in kinds)
