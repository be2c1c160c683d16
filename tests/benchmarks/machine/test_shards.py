"""One process and three make the same pictures, searches and records."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import ROOT
from benchmarks.machine.shards import ALONE, Shards
from benchmarks.quality.pictures import load
from benchmarks.specs import record
from tests.helpers.suites import DEFAULTS

SUITE = (
    DEFAULTS
    + """\
prompts = ["seen"]
limit = 5
metrics = ["macs", "clip_score", "psnr"]
[[run]]
id = "dense"
[[run]]
id = "random"
method = "random_search"
params = { ratio = 0.5, search = { evaluations = 7, population = 4 }, fitness = { images = 2 } }
metrics = ["macs", "search", "psnr"]
[[run]]
id = "ours"
method = "dipgo"
params = { ratio = 0.5, train = { steps = 2, lr = 20.0, keep = 0.51, width = 16, checkpoint = false } }
[[run]]
id = "impossible"
method = "random_search"
params = { ratio = 0.99, search = { evaluations = 7, population = 4 }, fitness = { images = 2 } }
"""
)


def run(folder: Path, processes: int) -> tuple[int, str]:
    folder.mkdir()
    (folder / "suite.toml").write_text(SUITE)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] * (processes > 1)
    folders = ["--workspace", str(folder / "runs"), "--records", str(folder / "records"), "--workers", "1"]
    command = [sys.executable, *launcher, "-m", "benchmarks", "run", str(folder / "suite.toml"), *folders]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    return done.returncode, done.stderr


def found(folder: Path, name: str) -> record.Record:
    return record.find(folder / "records", name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "one"
    code, errors = run(folder, 1)
    assert "error: impossible:" in errors and code == 3, errors
    return folder


def test_processes_share_the_work_and_change_no_result(alone, tmp_path):
    code, errors = run(tmp_path / "several", 3)
    assert code != 0 and errors.count("error: impossible: no schedule found") == 1, errors
    several = tmp_path / "several"
    for name in ("dense", "random", "ours"):
        one, many = found(alone, name), found(several, name)
        assert one.schedule == many.schedule and one.absent == many.absent
        pictures = [sorted((folder / "runs" / one.digest).rglob("*.png")) for folder in (alone, several)]
        if not one.metrics:  # two steps of training may spread the scores too little for the ratio
            continue
        assert len(pictures[0]) == len(pictures[1]) == 5
        assert abs(load(pictures[0]).int() - load(pictures[1]).int()).max() <= 1  # batches of other sizes
        assert many.metrics["seen"]["psnr" if name != "dense" else "clip_score"]["n"] == 5
        assert many.provenance["processes"] == 3
    one, many = found(alone, "random").trace, found(several, "random").trace
    assert [step[0] for step in one] == [step[0] for step in many]
    assert [step[1] for step in many] == pytest.approx([step[1] for step in one], abs=1e-5)
    assert found(several, "impossible").absent["psnr"].startswith("no schedule found")


def test_a_process_takes_every_other_item():
    assert [list(range(7))[Shards(index, 3).part] for index in range(3)] == [[0, 3, 6], [1, 4], [2, 5]]
    assert ALONE.map(lambda items: [item * 2 for item in items], [1, 2]) == [2, 4]
    ALONE.wait()
