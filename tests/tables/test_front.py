"""The first page of a table, on records that are synthetic."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks import ROOT
from tables.cells import table_cells
from tables.front import front, printed_rows, word
from tables.load import load_paper, load_table, names
from tables.measured import Measured
from tables.render import render
from tables.spec import Column
from tests.tables.test_paper_tables import write
from tests.tables.test_tables import line, of_suite, rewrite, suite, synthetic, write_all

UP, DOWN = (Column("x", "X", direction=direction) for direction in ("up", "down"))
PRINTED = {"table1": 10, "table2": 4, "table3": 9, "table4": 8, "table5": 5, "table6": 10, "table7": 5, "table8": 2}
"""The rows of the first pages: the printed ones, a second reading of one, and dense rows of other tables."""


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("records"))


@pytest.fixture(scope="module")
def page(records) -> str:
    return render("table1", records)["table1.md"]


@pytest.mark.parametrize(
    ("low", "high", "column", "expected"),
    [
        (-0.5, 0.5, UP, "keeps"),
        (-9.0, -2.0, UP, "loses"),
        (-30.0, -11.0, UP, "collapses"),
        (-2.0, 1.0, UP, "undecided"),
        (-12.0, -9.0, UP, "undecided"),
        (5.0, 9.0, UP, "keeps"),
        (-20.0, 0.9, DOWN, "keeps"),
        (2.0, 9.0, DOWN, "loses"),
        (0.5, 20.0, DOWN, "undecided"),
    ],
)
def test_a_difference_to_a_dense_score_of_100_has_one_word(low, high, column, expected):
    assert word(low, high, 100.0, column) == expected


@pytest.mark.parametrize("name", names())
def test_every_printed_row_is_there_in_the_printed_order(name):
    paper, table = load_paper(), load_table(name)
    rows = printed_rows(table, paper)
    assert len(rows) == PRINTED[name]
    here = paper[paper["table"] == name.removeprefix("table")]
    printed = list(here[["group", "method"]].drop_duplicates().itertuples(index=False, name=None))
    shown = [
        key
        for row in rows
        if not row.added
        for key in printed
        if {**row.paper}.items() >= {("method", key[1])}
        if row.paper.get("group", key[0]) == key[0]
    ]
    assert list(dict.fromkeys(shown)) == printed


def test_the_papers_values_stand_beside_ours(page):
    expected = synthetic(suite()["ours-0.80"]).metrics["all"]
    cells = line(page, "**Ours (w/ Pruned-0.80)**")
    assert cells[1:4] == ["3.38", "4.43 / 4.40", "29.51 / 30.29"]
    assert cells[4] == f"{expected['macs_paper']['value'] / 1e9:.2f}"
    assert cells[5] == f"{expected['speedup_end_to_end']['value']:.2f}"
    dense = (synthetic(suite()["plms-50"]).samples[prompts]["clip_score"] for prompts in ("seen", "held-out"))
    assert line(page, "PLMS - 50 steps")[-2:] == [" / ".join(f"{np.mean(each):.1f}" for each in dense), "reference"]


@pytest.mark.parametrize(
    ("shift", "run", "label", "expected"),
    [
        (0.0, "ours-0.80", "**Ours (w/ Pruned-0.80)**", "yes: keeps"),
        (-0.05, "ours-0.80", "**Ours (w/ Pruned-0.80)**", "**worse**: loses"),
        (-0.05, "bk-base", "BK-SDM - Base", "yes: loses"),
        (0.0, "bk-base", "BK-SDM - Base", "**better**: keeps"),
        (-0.5, "bk-base", "BK-SDM - Base", "**worse**: collapses"),
        (-0.01, "bk-base", "BK-SDM - Base", "undecided"),
    ],
)
def test_a_row_says_whether_it_came_out_as_in_the_paper(records, tmp_path, shift, run, label, expected):
    folder = Path(shutil.copytree(records, tmp_path / "records"))
    dense, held = synthetic(suite()["plms-50"]), synthetic(suite()[run])
    samples, metrics = dict(held.samples), dict(held.metrics)
    for prompts in samples:
        wobble = np.random.default_rng(1).normal(0, 0.5, len(dense.samples[prompts]["clip_score"]))
        scores = np.array(dense.samples[prompts]["clip_score"]) * (1 + shift) + wobble - wobble.mean()
        samples[prompts] = samples[prompts] | {"clip_score": list(scores)}
        metrics[prompts] = metrics[prompts] | {"clip_score": {"value": float(scores.mean()), "n": len(scores)}}
    rewrite(folder, run, samples=samples, metrics=metrics)
    page = render("table1", folder)["table1.md"]
    assert line(page, label)[-1] == expected


def test_the_rows_at_equal_macs_stand_side_by_side_on_the_last_prompt_set(page):
    section = page.split("### What the same MACs buy otherwise, held-out")[1]
    cells = line(section, "DDIM - 10 steps")
    psnr = [np.mean(synthetic(suite()[run]).samples["held-out"]["psnr"]) for run in ("ddim-10", "ddim-8")]
    assert cells[3] == f"{psnr[0]:.2f}" and cells[4] == "DDIM - 8 steps" and cells[7] == f"{psnr[1]:.2f}"


def test_the_sentence_on_top_counts_what_the_rows_say(page):
    top = page.split("\n")[2]
    words = [line(page, label)[-1] for label in re.findall(r"^\| (\S.*?\S) +\|", page.split("###")[0], re.M)[1:]]
    assert top.startswith(f"**{sum(word.startswith('yes') for word in words)} of 9 rows come out as in the paper")
    assert "than 0 of 2 pruned rows.**" in top  # the synthetic 2 dB


@pytest.mark.parametrize("name", names())
def test_a_published_first_page_is_at_most_60_lines_and_links_what_it_leaves_out(name):
    out = ROOT / "tables" / "out"
    page = (out / f"{name}.md").read_text("utf-8")
    assert len(page.split("\n")) <= 60
    for link in re.findall(r"\]\((.*?)\)", page):
        file, _, anchor = link.partition("#")
        assert (out / file).exists() and (not anchor or f"## {anchor.capitalize()}" in (out / file).read_text("utf-8"))


@pytest.mark.parametrize("profile", ["paper", "random-weights"])
def test_the_papers_own_models_have_a_first_page_in_its_units(tmp_path, profile):
    folder = write(tmp_path, "plms-50", "ours-0.80", profile=profile, images=40)
    page = render("table1", folder, profile)["table1.md"]
    assert "MACs G" not in page and line(page, "PLMS - 50 steps")[-1] == "reference"
    assert ("weights are random" in page) == (profile == "random-weights")


def test_a_table_that_the_paper_lacks_shows_all_its_rows(tmp_path):
    table = of_suite(tmp_path, '[[run]]\nid = "dense"\n[[run]]\nid = "few"\nscheduler = "dpm"\nsteps = 4\n')
    page = front(Measured(table, {}, load_paper(), [], table_cells(table, {}, load_paper(), [])))
    assert "As in the paper" not in page and "Nothing measured" in page
    assert all(line(page, label) for label in ("PLMS - 50 steps", "DPM-Solver++ 2M - 4 steps"))


def test_a_missing_row_says_why(tmp_path):
    page = render("table3", tmp_path)["table3.md"]
    assert "- –¹ a number that the paper quotes from DiT's authors" in page
    assert "- –² not measured yet, run `nox -s reproduce-table3`" in page
