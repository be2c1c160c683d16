"""The suite from specs to records, on the zoo's model at four steps and four prompts a set."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from baselines import learned_schedule
from benchmarks.__main__ import SOME_ROWS_ABSENT, main
from benchmarks.models import generate
from benchmarks.models.macs import macs_cells
from benchmarks.quality.pictures import load
from benchmarks.specs import record
from benchmarks.speed import latency
from benchmarks.speed.latency import latency_cells
from dipgo import Schedule

SUITE = """
[defaults]
model = "emoji-sd"
method = "dense"
scheduler = "{scheduler}"
steps = 4
guidance = 4.0
resolution = 64
dtype = "float32"
prompts = ["seen", "held-out"]
limit = 4
seed = 0
metrics = ["macs", "latency", "clip_score", "fid_efflite0", "kid_efflite0", "psnr", "ssim"]
reference = "dense"
[method.dipgo.train]
steps = 2
lr = 20.0
keep = 0.51
width = 16
checkpoint = false
[[run]]
id = "dense"
[[run]]
id = "ours"
method = "dipgo"
params = {{ ratio = {ratio} }}
[[run]]
id = "half"
method = "step_skip"
params = {{ mode = "hold", interval = 2 }}
[[run]]
id = "own"
method = "kept_timesteps"
params = {{ of = "half", calls = 2 }}
"""
ROWS = ("dense", "half", "own")


class Bench:
    """A suite file with its workspace and records, driven through the command line."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.workspace, self.records = folder, folder / "runs", folder / "records"
        self.suite = folder / "suite.toml"

    def run(self, *arguments: str, suite: str | None = None, rows=ROWS, scheduler="ddim", ratio=0.5) -> int:
        self.suite.write_text(SUITE.format(scheduler=scheduler, ratio=ratio))
        chosen = [text for row in rows for text in ("--row", row)]
        folders = ["--workspace", str(self.workspace), "--records", str(self.records)]
        return main(["run", suite or str(self.suite), *chosen, *folders, "--workers", "1", *arguments])

    def record(self, name: str) -> record.Record:
        found = record.find(self.records, name)
        assert found is not None
        return found

    def images(self, name: str) -> list[Path]:
        return sorted((self.workspace / self.record(name).digest).rglob("*.png"))


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Bench:
    bench = Bench(tmp_path_factory.mktemp("measured"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "ROUNDS", 2)
        assert bench.run() == 0
    return bench


@pytest.fixture
def bench(measured, tmp_path) -> Bench:
    """A copy to break."""
    for name in ("runs", "records"):
        shutil.copytree(getattr(measured, {"runs": "workspace"}.get(name, name)), tmp_path / name)
    return Bench(tmp_path)


def test_a_record_holds_every_metric_with_its_n(measured):
    half = measured.record("half")
    assert set(half.metrics) == {"all", "seen", "held-out"}
    for name in ("seen", "held-out"):
        cells = half.metrics[name]
        assert set(cells) == {"clip_score", "fid_efflite0", "kid_efflite0", "psnr", "ssim"}
        assert all(cell["n"] == 4 for cell in cells.values())
        assert len(half.samples[name]["psnr"]) == 4
    everywhere = half.metrics["all"]
    assert everywhere["pruned_ratio"]["value"] == pytest.approx(0.5)
    assert everywhere["step_skip_share"]["value"] == pytest.approx(1)
    dense = measured.record("dense").metrics["all"]
    assert everywhere["macs_full"]["value"] == pytest.approx(dense["macs_full"]["value"] / 2)
    assert Schedule.from_dict(half.schedule).calls == 4
    assert {"commit", "device", "packages", "weights", "peak_memory_bytes"} <= set(half.provenance)


def test_the_dense_row_has_no_distance_to_itself(measured):
    assert not {"psnr", "ssim"} & set(measured.record("dense").metrics["seen"])


def test_on_ddim_holding_equals_the_kept_timesteps(measured):
    # "own" is DDIM over the timesteps that "half" computes; "half" runs on DDIM here, so they are one run.
    assert (load(measured.images("own")) == load(measured.images("half"))).all()


def test_a_finished_run_is_not_done_again(bench, monkeypatch):
    monkeypatch.setattr(generate, "sample", pytest.fail)
    monkeypatch.setattr(latency, "time_once", pytest.fail)
    before = {path.name: path.read_text() for path in bench.records.iterdir()}
    assert bench.run() == 0
    assert before == {path.name: path.read_text() for path in bench.records.iterdir()}


def test_a_record_without_its_pictures_is_measured_again(bench, monkeypatch):
    monkeypatch.setattr(latency, "ROUNDS", 1)
    shutil.rmtree(bench.workspace)
    assert bench.run(rows=["dense"]) == 0
    assert len(bench.images("dense")) == 8


def test_a_killed_run_keeps_its_finished_pictures(bench):
    kept, lost = bench.images("half")[:1], bench.images("half")[1]
    before = load([lost])
    stamp = kept[0].stat().st_mtime_ns
    lost.unlink()
    (bench.workspace / bench.record("half").digest / "held-out.json").unlink()
    assert bench.run("--batch", "1") == 0
    assert kept[0].stat().st_mtime_ns == stamp
    assert abs(load([lost]).int() - before.int()).max() <= 1  # made at another batch size


def test_two_workers_make_the_same_pictures_and_train(bench, monkeypatch):
    monkeypatch.setattr(latency, "ROUNDS", 1)
    before = load(bench.images("half"))
    assert bench.run("--fresh", "--workers", "2", rows=["half", "ours"]) in (0, SOME_ROWS_ABSENT)
    assert len(list((bench.workspace / "pruners").iterdir())) == 1
    assert abs(load(bench.images("half")).int() - before.int()).max() <= 1


def test_fresh_measures_again(bench, monkeypatch):
    monkeypatch.setattr(latency, "ROUNDS", 1)
    first = bench.images("half")[0].stat().st_mtime_ns
    assert bench.run("--fresh", rows=["half"]) == 0
    assert bench.images("half")[0].stat().st_mtime_ns > first


def test_a_pruner_is_trained_once_for_equal_settings(bench, monkeypatch):
    monkeypatch.setattr(latency, "ROUNDS", 1)
    assert bench.run(rows=["ours"]) in (0, SOME_ROWS_ABSENT)
    if bench.record("ours").metrics:
        cells = bench.record("ours").metrics["all"]
        assert cells["training_seconds"]["value"] > 0 and cells["training_peak_memory"]["value"] > 1e8
    monkeypatch.setattr(learned_schedule, "train_pruner", pytest.fail)
    assert bench.run(rows=["ours"], ratio=0.25) in (0, SOME_ROWS_ABSENT)


def test_a_row_that_cannot_be_measured_says_why_in_its_record(bench, capsys):
    assert bench.run(rows=["ours", "half"], ratio=0.9) == SOME_ROWS_ABSENT
    assert "no threshold" in capsys.readouterr().err
    ours = bench.record("ours")
    assert not ours.metrics and "no threshold" in ours.absent["clip_score"]


def test_a_failed_training_costs_its_own_rows_only(bench, capsys, monkeypatch):
    def diverge(*_):
        raise RuntimeError("it diverged")
        yield

    monkeypatch.setattr(latency, "ROUNDS", 1)
    monkeypatch.setattr(learned_schedule, "train_pruner", diverge)
    shutil.rmtree(bench.workspace / bench.record("half").digest)
    assert bench.run(rows=["ours", "half"]) == SOME_ROWS_ABSENT
    assert "error: ours: pruner training of ours failed: RuntimeError: it diverged" in capsys.readouterr().err
    assert bench.record("ours").absent["psnr"].endswith("it diverged") and bench.record("half").metrics


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"suite": "tabel1"}, "did you mean table1"),
        ({"suite": "nowhere.toml"}, "nowhere.toml"),
        ({"rows": ["denze"]}, "did you mean dense"),
        ({"scheduler": "plmz"}, "did you mean plms"),
        ({"rows": ["ours"], "ratio": 1.5}, "between 0 and 1"),
    ],
)
def test_bad_input_is_one_clear_line(bench, capsys, change, says):
    before = sorted(bench.folder.rglob("*.json"))
    assert bench.run(**change) != 0
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and says in errors[0]
    if "ratio" not in change:
        assert sorted(bench.folder.rglob("*.json")) == before


def test_an_unknown_profile_or_model_is_named(bench, capsys, monkeypatch):
    assert bench.run("--profile", "embeded") == 1
    assert "did you mean embedded" in capsys.readouterr().err
    monkeypatch.setattr("tests.benchmarks.runs.test_run.SUITE", SUITE.replace('"emoji-sd"', '"emoji-ds"'))
    assert bench.run() == 1
    assert "run 'dense': unknown model 'emoji-ds'; did you mean emoji-sd" in capsys.readouterr().err


def test_a_run_that_another_process_measures_is_refused(bench, capsys):
    path = bench.workspace / f"{bench.record('half').digest}.lock"
    with FileLock(path):
        assert bench.run("--fresh", rows=["half"]) == 1
    assert "error: run 'half' is being measured by another process" in capsys.readouterr().err
    assert bench.images("half") and bench.run(rows=["half"]) == 0


def test_a_trial_sets_fields_and_leaves_the_records_alone(bench, monkeypatch):
    monkeypatch.setattr(latency, "ROUNDS", 1)
    trial = ("--limit", "5", "--set", "params.interval=4", "--set", "protocol=paper")
    assert bench.run(*trial, rows=["half"]) == 0
    half = bench.record("half")
    assert half.spec["limit"] == 5 and half.spec["params"]["interval"] == 4 and half.spec["protocol"] == "paper"
    assert "protocol" not in bench.record("own").spec  # from before


def test_a_metric_that_takes_more_pictures_is_absent_with_its_reason(bench, monkeypatch):
    monkeypatch.setattr(latency, "ROUNDS", 1)
    assert bench.run("--limit", "2", rows=["half"]) == 0
    half = bench.record("half")
    assert half.absent["kid_efflite0"] == "kid_efflite0 takes 4 pictures or more, not 2; raise the limit"
    assert "kid_efflite0" not in half.metrics["seen"] and half.metrics["seen"]["fid_efflite0"]["n"] == 2


@pytest.mark.parametrize(
    ("text", "says"), [("steps", "FIELD=VALUE"), ("stepps=3", "did you mean steps"), ("params.nothing=3", "no run has")]
)
def test_a_field_that_cannot_be_set_is_named(bench, capsys, text, says):
    assert bench.run("--set", text) == 1
    assert says in capsys.readouterr().err


def test_a_full_disk_leaves_nothing_half_written(bench, capsys, monkeypatch):
    shutil.rmtree(bench.workspace)

    def full(*paths):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert bench.run(rows=["dense"]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "No space left" in errors[0]
    assert not [path for path in bench.workspace.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_speedups_pair_the_runs_of_one_round():
    rounds = {
        "dense": [{"denoiser": 2.0, "end_to_end": 3.0}, {"denoiser": 4.0, "end_to_end": 6.0}],
        "run": [{"denoiser": 1.0, "end_to_end": 2.0}, {"denoiser": 2.0, "end_to_end": 4.0}],
    }
    cells = latency_cells(rounds)
    assert cells["speedup_denoiser"] == {"value": 2.0, "n": 2, "low": 2.0, "high": 2.0}
    assert cells["speedup_end_to_end"]["value"] == 1.5 and cells["seconds_denoiser"]["value"] == 1.5


def test_the_papers_convention_charges_steps_and_one_branch(tiny, tiny_costs):
    from baselines import Plan

    sampler = tiny.sampler("plms", 50)
    cells = macs_cells(Plan(sampler, Schedule.dense(tiny.graph.sites, sampler.calls), tiny_costs), branches=2)
    assert cells["macs_paper"]["value"] == pytest.approx(50 * tiny_costs.paper.dense)
    assert cells["macs_full"]["value"] == pytest.approx(2 * 51 * tiny_costs.full.dense)
    assert "step_skip_share" not in cells and np.isclose(cells["pruned_ratio"]["value"], 0)


def test_a_suite_of_ones_own_keeps_its_records_apart_and_its_scores_are_printed(tmp_path, capsys):
    path, workspace = tmp_path / "mine.toml", tmp_path / "runs"
    fewer = 'prompts = ["seen"]\nmetrics = ["macs", "clip_score"]\nlimit = 1\n'
    path.write_text(
        '[defaults]\nmodel = "emoji-sd"\nmethod = "dense"\nscheduler = "ddim"\nsteps = 2\nguidance = 4.0\n'
        f'resolution = 64\ndtype = "float32"\nseed = 0\n{fewer}[[run]]\nid = "mine"\n'
    )
    assert main(["run", str(path), "--workspace", str(workspace), "--workers", "1"]) == 0
    (written,) = (workspace / "records").glob("mine-*.json")
    score = record.read(written).metrics["seen"]["clip_score"]["value"]
    said = capsys.readouterr().out
    assert f"{score:.2f}" in said and "mine" in said and f"The records are in {workspace / 'records'}." in said
