"""The report in a real browser: the pages load, sort and show what they hold."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.specs.pictures import SHEETS
from tables.__main__ import main
from tables.figures.pareto import load_spec
from tables.report.charts import DENSE, load_kinds
from tables.report.gates import COMPUTED, picture_of
from tables.report.pages import Sources, write
from tables.report.pictures import NOT_DRAWN, TESTS
from tests.tables.test_tables import suite, write_all

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs Chromium; Debian has it as `chromium`")
MOST_BYTES = 15_000_000


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    records = write_all(folder / "records")
    write(Sources(records, pictures=drawn(folder / "pictures"), tables=("table1",)), folder / "pages")
    return folder / "pages"


def drawn(folder: Path) -> Path:
    """A folder of pictures in which one row has no sheet, and one has the reason for it."""
    sheets = {}
    for name in ("plms-50", "ours-0.80", "deepcache-5"):
        sheet = {"sheet": f"{name}.png", "prompts": "held-out", "captions": ["a cat", "a dog"]}
        sheets[suite()[name].id] = sheet | ({} if name == "plms-50" else {"psnr": [31.26, 28.74]})
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (16, 8), "red").save(folder / f"{name}.png")
    sheets["ours-0.85"] = {"absent": "other weights"}
    named = {f"{name}-{suite()[name].digest}.json": sheet for name, sheet in sheets.items()}
    (folder / SHEETS).write_text(json.dumps(named), "utf-8")
    return folder


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
@pytest.mark.parametrize(
    "name", ["index", "table1", "claims", "figures", "gates", "courses", "pareto_macs", "pareto_seconds"]
)
def test_a_page_loads_without_a_word_on_the_console(report, name):
    broken = "document.title = [...document.images].filter((i) => !i.naturalWidth).length + ' broken'"
    document, console = browse(report / f"{name}.html", f"onload = () => {{ {broken} }}")
    assert console == [] and "<title>0 broken</title>" in document
    assert ("<svg" in document) == name.startswith("pareto")


def test_pictures_stand_beside_each_other_and_absent_ones_say_why(report):
    page = (report / "table1.html").read_text("utf-8")
    assert page.count("<img") == 3 and "31.3 dB" in page and "a cat; a dog" in page
    assert page.count("other weights") == 1 and page.count(NOT_DRAWN) > 1


def test_a_figure_says_whether_it_shows_what_the_papers_does(report):
    page = (report / "figures.html").read_text("utf-8")
    figures = re.split(r"<h2>Figure (\d)", page)[1:]
    assert figures[::2] == ["3", "4", "5", "6", "7"]
    said = dict(zip(figures[::2], figures[1::2], strict=True))
    assert "It does not show the same: the mean PSNR" in said["3"] and "not measured yet are dit-ddim-250" in said["4"]
    assert "for ours and" in said["5"]


@pytest.mark.parametrize(("near", "answer"), [(0.99, "It shows the same"), (0.5, "It does not show the same")])
def test_features_are_steady_where_neighbouring_steps_are_alike(near, answer):
    matrix = {"model": "m", "steps": 3, "cosine": [[1, near, 0], [near, 1, near], [0, near, 1]]}
    assert TESTS["similarity"]([None], [matrix]).startswith(
        f"{answer}: the mean cosine between neighbouring steps is {near}"
    )


def test_a_gate_map_has_a_pixel_a_block_and_call():
    data = base64.b64decode(picture_of(["00", "01", "11"]).partition(",")[2])
    image = Image.open(io.BytesIO(data))
    assert image.size == (3, 2)
    computed = [[image.getpixel((call, block)) == COMPUTED for call in range(3)] for block in range(2)]
    assert computed == [[True, True, False], [True, False, False]]


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


def test_without_a_record_there_is_no_report_but_one_line(tmp_path, caplog):
    assert main(["report", "--records", str(tmp_path), "--out", str(tmp_path / "pages")]) == 2
    assert "no record to report" in caplog.text and not (tmp_path / "pages").exists()


def test_the_rows_whose_pictures_are_shown_are_those_of_first_pages_and_figures(capsys):
    assert main(["report", "--rows"]) == 0
    rows = capsys.readouterr().out.split()
    assert {"plms-50", "ours-0.80", "plus-0.80", "ours-0.95", "sd2-dpm-25"} <= set(rows)
    assert len(set(rows)) == len(rows) < 120
