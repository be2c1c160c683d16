"""The page of the frontier, on records that are made here by arithmetic."""

from __future__ import annotations

import io
from dataclasses import replace

import pandas as pd
import pytest

from benchmarks import ROOT
from benchmarks.specs import record
from benchmarks.specs.suite import load_suite
from dipgo.errors import DipgoError
from tables.frontier import entries, render_frontier
from tests.tables.test_tables import synthetic

SUITE = ROOT / "benchmarks" / "suites" / "frontier.toml"
AT_080 = {"tuned": 36.0, "plus": 38.5, "ours": 30.0}
"""The PSNR of the first picture of some contestants of emoji-sd; that of the others is higher by 0.01 each."""


def measured(name: str, psnr: float | None = None):
    specs = {spec.id: spec for spec in load_suite(SUITE, lambda row: "5a17e71c" * 8)}
    done = synthetic(specs[name], 40)
    if psnr is None:
        return done
    values = [psnr + 0.01 * index for index in range(40)]
    metrics = {**done.metrics, "fresh": {**done.metrics["fresh"], "psnr": {"value": sum(values) / 40, "n": 40}}}
    return replace(done, metrics=metrics, samples={"fresh": {**done.samples["fresh"], "psnr": values}})


@pytest.fixture
def folder(tmp_path):
    record.write(measured("frontier-sd"), tmp_path)
    for name, psnr in AT_080.items():
        record.write(measured(f"frontier-sd-{name}-0.80", psnr), tmp_path)
    return tmp_path


def test_the_leader_of_a_budget_is_named_with_its_lead(folder):
    page = render_frontier(folder)["frontier.md"]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    assert ["emoji-sd", "0.80", "Ours+", "38.7", "Few steps, tuned", "+2.5 [+2.5, +2.5]"] in rows
    (best,) = [line for line in page.splitlines() if line.startswith("| Ours+ ") and "**" in line]
    assert "**38.7** (.200)" in best


def test_who_spends_more_than_half_a_call_over_the_budget_leads_nothing(folder):
    record.write(measured("frontier-sd-taylor1-0.80", 45.0), folder)  # the synthetic record spends the dense run's MACs
    page = render_frontier(folder)["frontier.md"]
    assert "*45.2* (1.000)" in page and "**38.7** (.200)" in page
    assert not [line for line in page.splitlines() if "TaylorSeer" in line and "[" in line]


def test_what_is_not_measured_says_so_and_nothing_else_is_empty(folder):
    files = render_frontier(folder)
    lines = pd.read_csv(io.StringIO(files["frontier.csv"]))
    assert len(lines) == len(entries(SUITE, folder)) and not lines.run.duplicated().any()
    assert (lines.psnr.isna() == lines.reason.notna()).all()
    assert lines.psnr.notna().sum() == len(AT_080)
    assert "not measured yet, run `nox -s reproduce-frontier`" in files["frontier.md"]


def test_every_contestant_of_the_suite_has_a_line_and_one_run_a_budget(folder):
    known = entries(SUITE, folder)
    assert len({(entry.model, entry.series, entry.budget) for entry in known}) == len(known)
    for model in ("emoji-dit", "emoji-pixart"):
        assert len({entry.series for entry in known if entry.model == model}) >= 14


def test_without_records_and_for_other_profiles_there_is_no_page(tmp_path, folder):
    assert render_frontier(tmp_path / "empty") == {}
    assert render_frontier(folder, "paper") == {}


def test_records_that_were_not_measured_alike_are_refused(folder):
    specs = {spec.id: spec for spec in load_suite(SUITE, lambda row: "ffffffff" * 8)}
    record.write(synthetic(specs["frontier-sd-gits-0.80"], 40), folder)
    with pytest.raises(DipgoError, match="has revision .*: they cannot stand in one table; run one of them again"):
        render_frontier(folder)
