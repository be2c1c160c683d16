"""The Pareto figure: its points and fronts on synthetic records, and the pictures' own rules."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.specs import record
from dipgo.errors import DipgoError
from tables.__main__ import first_difference, main
from tables.figures.figure import Panel, Point, Series, bounds, draw
from tables.figures.pareto import SPEC, front, load_points, load_spec, render_pareto, source_of, stamp
from tables.format import csv_text
from tables.load import load_table, names
from tests.tables.test_tables import suite, synthetic, write_all

FILES = {"pareto.csv", *(f"pareto_{cost}.{kind}" for cost in ("macs", "seconds") for kind in ("svg", "png"))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """All rows of Table 1, one run of Table 6."""
    path = write_all(tmp_path_factory.mktemp("records"))
    record.write(synthetic(suite("table6")["search-genetic-0.80"]), path)
    return path


@pytest.fixture(scope="module")
def points(folder) -> pd.DataFrame:
    lines, _ = load_points(load_spec(), folder)
    return pd.read_csv(io.StringIO(csv_text(map(vars, lines)))).set_index(["row", "metric"]).sort_index()


@pytest.fixture(scope="module")
def out(folder, tmp_path_factory) -> Path:
    """What the command writes."""
    path = tmp_path_factory.mktemp("out")
    assert main(["render", "pareto", "--records", str(folder), "--out", str(path)]) == 0
    return path


def test_a_front_holds_what_nothing_dominates():
    costs_and_qualities = [(1.0, 5.0), (2.0, 5.0), (2.0, 7.0), (3.0, 6.0)]
    assert front(costs_and_qualities, "up") == [True, False, True, False]
    assert front(costs_and_qualities, "down") == [True, False, False, False]


def test_equals_are_on_the_front_together():
    assert front([(1.0, 5.0), (1.0, 5.0)], "up") == [True, True]


def test_a_fence_leaves_a_collapse_out_of_the_panel_and_none_shows_it():
    values = [30.0, 31.0, 32.0, 33.0, 9.0]
    assert bounds(values, "up", 1.5)[0] > 29 and bounds(values, "up", None)[0] < 9
    worse, better = bounds([100.0, 101.0, 102.0, 103.0, 900.0], "down", 1.5)
    assert 103 < worse < 110 and better < 100


def test_costs_are_shares_of_the_dense_run(points):
    row = points.loc["DDIM - 10 steps", "psnr"]
    assert (row["family"], row["dataset"], row["series"]) == ("table1", "held-out", "Fewer steps: DDIM")
    assert row["macs"] == pytest.approx(0.2)  # ten of fifty steps
    assert row["seconds"] == pytest.approx(0.2 / 0.9, rel=1e-5)  # one by the record's speedup
    assert row["seconds_low"] < row["seconds"] < row["seconds_high"]
    assert row["low"] < row["value"] < row["high"]


def test_the_dense_run_differs_by_nothing_and_has_no_psnr(points):
    assert points.loc[("PLMS - 50 steps", "clip_score_diff"), "value"] == 0
    assert ("PLMS - 50 steps", "psnr") not in points.index
    assert points.loc[("PLMS - 50 steps", "fid_efflite0"), "series"] == "Dense"


def test_the_csv_says_which_runs_are_on_the_front(points):
    psnr = points.xs("psnr", level="metric")
    for cost in ("macs", "seconds"):
        kept = [cost in str(names).split() for names in psnr["front"]]
        assert kept == front(list(zip(psnr[cost], psnr["value"], strict=True)), "up") and any(kept)


def test_a_run_of_another_table_stands_beside(points):
    assert points.loc[("search-genetic-0.80", "psnr"), "series"] == "Genetic search"
    runs = {row.run for name in names() for row in load_table(name).rows}
    assert {run for family in load_spec().families for run in family.also} <= runs


def test_every_method_of_the_suites_has_a_series(points):
    assert "Other methods" not in set(points["series"])


def test_a_method_that_no_series_takes_is_shown_as_another(folder, tmp_path):
    text = SPEC.read_text("utf-8").replace('method = "deepcache"', 'method = "nobody"')
    (tmp_path / "pareto.toml").write_text(text, "utf-8")
    lines, _ = load_points(load_spec(path=tmp_path / "pareto.toml"), folder)
    assert {line.series for line in lines if line.row.startswith("DeepCache")} == {"Other methods"}


def test_a_spec_without_a_last_resort_is_refused(tmp_path):
    (tmp_path / "pareto.toml").write_text(SPEC.read_text("utf-8").replace("match = {}", 'match = { method = "x" }'))
    with pytest.raises(DipgoError, match="the last series must have an empty `match`"):
        load_spec(path=tmp_path / "pareto.toml")


def test_an_unknown_prompt_set_is_named(tmp_path):
    (tmp_path / "pareto.toml").write_text(SPEC.read_text("utf-8").replace('"held-out"', '"hold-out"'), "utf-8")
    with pytest.raises(DipgoError, match="did you mean held-out"):
        render_pareto(tmp_path, path=tmp_path / "pareto.toml")


def test_the_same_points_give_the_same_bytes():
    panel = Panel("A", "PSNR dB", "up", None, [Point("B", (0.2, 0.19, 0.22), (30.0, 29.0, 31.0), True)])
    one, other = (draw([[panel]], [Series("B", "#000000", "o")], "MACs", "source") for _ in range(2))
    assert one == other
    assert b"<dc:date>" not in one["svg"]


def test_every_picture_carries_what_it_was_drawn_from(out):
    stamps = {stamp(path.read_bytes()) for path in out.iterdir() if path.suffix in (".svg", ".png")}
    assert len(stamps) == 1 and None not in stamps


def test_the_stamp_changes_with_the_points_and_with_what_the_spec_says_alone(tmp_path):
    path, text = tmp_path / "pareto.toml", SPEC.read_text("utf-8")
    path.write_text(text + "# a comment\n")
    assert source_of("points", path=path) == source_of("points") != source_of("more points")
    path.write_text(text.replace("#0072B2", "#0072B3"))
    assert source_of("points", path=path) != source_of("points")


def test_a_picture_is_held_to_its_points_and_not_to_its_bytes(out, tmp_path):
    content, copy = (out / "pareto_macs.svg").read_bytes(), tmp_path / "pareto_macs.svg"
    copy.write_bytes(content + b"<!-- as another version of the drawing library might -->")
    assert first_difference(copy, content) is None
    copy.write_bytes(content.replace(stamp(content), stamp(content)[:-4] + b"0000"))
    assert "not drawn from these records" in first_difference(copy, content)


def test_the_command_writes_the_figures_and_finds_a_stale_one(folder, out, caplog):
    assert {path.name for path in out.iterdir()} == FILES
    check = ["render", "pareto", "--records", str(folder), "--out", str(out), "--check"]
    assert main(check) == 0
    record.write(synthetic(suite("table6")["search-random-0.80"]), folder)
    try:
        assert main(check) == 1 and "pareto.csv:" in caplog.text
    finally:
        next(folder.glob("search-random-0.80-*.json")).unlink()


def test_without_a_point_there_is_no_figure(tmp_path, caplog):
    assert render_pareto(tmp_path) == {} == render_pareto(tmp_path, "paper")
    assert main(["render", "pareto", "--records", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "no record of pareto" in caplog.text and not (tmp_path / "out").exists()
