"""Runs with random weights follow published schedules, and stop being timed when their minutes are over."""

from __future__ import annotations

import pytest
import torch

from benchmarks import ROOT
from benchmarks.__main__ import SOME_ROWS_ABSENT, main
from benchmarks.models import model as models
from benchmarks.runs.published import with_schedules_of
from benchmarks.specs import record
from benchmarks.specs.suite import load_suite, with_needs
from benchmarks.speed import latency
from benchmarks.supply import random_weights
from dipgo.errors import DipgoError
from tests.helpers.small import SMALL

PUBLISHED = ROOT / "tables" / "records"
TIMED = ("seconds_denoiser", "speedup_denoiser", "seconds_end_to_end", "speedup_end_to_end")


def specs(*rows: str):
    path = ROOT / "benchmarks" / "suites" / "table1.toml"
    return with_needs(load_suite(path, lambda row: "random", "random-weights"), rows)


def test_a_run_that_would_learn_follows_the_published_schedule_and_says_whose():
    asked = specs("ours-0.80", "plms-25")
    changed = {spec.id: spec for spec in with_schedules_of(PUBLISHED, asked)}
    dense, ours = changed["plms-50"], changed.pop("ours-0.80")
    assert [*changed.values()] == [spec for spec in asked if spec.id != "ours-0.80"]
    found = record.find(PUBLISHED, "ours-0.80")
    assert ours.method == "stored_schedule" and ours.needs == (dense.digest,) and ours.reference == dense.id
    assert ours.to_json()["params"]["schedule"] == {key: found.schedule[key] for key in ("sites", "reuse")}
    assert ours.params["origin"] == f"emoji-sd, {found.file}"


def test_a_run_that_follows_another_one_needs_the_changed_run():
    changed = {spec.id: spec for spec in with_schedules_of(PUBLISHED, specs("own-0.80"))}
    assert changed["ours-0.80"].digest in changed["own-0.80"].needs


def test_a_run_without_a_published_schedule_is_named(tmp_path):
    with pytest.raises(DipgoError, match="run 'ours-0.80': .* no record of it with a schedule; leave the row out"):
        with_schedules_of(tmp_path, specs("ours-0.80"))


@pytest.fixture
def small(monkeypatch):
    """Small models in place of the paper's, in float32, in which CPUs are faster; one round of timing."""
    drawn = random_weights.pipeline

    def pipeline(name, dtype, **where):
        return drawn(name, torch.float32, **where, **SMALL[name])

    monkeypatch.setattr(random_weights, "pipeline", pipeline)
    monkeypatch.setattr(latency, "ROUNDS", 1)
    models.forget()
    yield
    models.forget()


def timed(folder, *options: str) -> int:
    places = ["--workspace", str(folder / "runs"), "--records", str(folder / "records"), "--workers", "1"]
    rows = ["--row", "ours-0.80", "--limit", "1", "--set", 'prompts=["parti"]', "--schedules", str(PUBLISHED)]
    return main(["run", "table1", "--random-weights", *rows, *places, *options])


def test_seconds_of_a_published_schedule_are_measured_and_nothing_is_trained(small, tmp_path):
    assert timed(tmp_path) == 0
    dense, ours = (record.find(tmp_path / "records", name) for name in ("plms-50", "ours-0.80"))
    assert all(found.cell("all", metric)["n"] == 1 for found in (dense, ours) for metric in TIMED)
    assert dense.cell("all", "speedup_denoiser")["value"] == 1 and ours.cell("all", "speedup_denoiser")["value"] > 2
    assert ours.schedule["calls"] == 51 and "training_seconds" not in ours.metrics["all"]
    assert "noise" in ours.absent["clip_score"] and not (tmp_path / "runs" / "pruners").exists()


def test_what_the_minutes_do_not_reach_is_absent_and_says_so(small, tmp_path, capsys):
    assert timed(tmp_path, "--minutes", "1e-9") == SOME_ROWS_ABSENT
    assert "minutes were over before its turn" in record.find(tmp_path / "records", "ours-0.80").absent["latency"]
    assert timed(tmp_path, "--minutes", "0") == 1 and "--minutes is 0.0" in capsys.readouterr().err
