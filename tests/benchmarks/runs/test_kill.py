"""A run is killed at random moments, again and again, and goes on: nothing lost, nothing twice, the same records."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from tqdm import tqdm

from benchmarks.__main__ import main
from benchmarks.specs import record
from benchmarks.speed import latency
from tests.helpers.suites import DEFAULTS

KILLS = 20
SUITE = (
    DEFAULTS
    + """\
prompts = ["seen", "held-out"]
limit = 4
metrics = ["macs", "latency", "clip_score", "fid_efflite0", "kid_efflite0", "psnr", "ssim"]
[[run]]
id = "dense"
[[run]]
id = "half"
method = "step_skip"
params = { mode = "hold", interval = 2 }
[[run]]
id = "random"
method = "random_search"
params = { ratio = 0.5, search = { evaluations = 8, population = 2 }, fitness = { images = 2 } }
metrics = ["macs", "search", "psnr"]
"""
)
TIMES = ("seconds", "speedup", "search_seconds", "evaluations_per_second")


def run(folder: Path) -> int:
    folders = ["--workspace", str(folder / "runs"), "--records", str(folder / "records")]
    return main(["run", str(folder / "suite.toml"), *folders, "--workers", "1", "--batch", "2"])


def start(folder: Path) -> int:
    """The run in a process of its own, which has all imports and models already; its process id."""
    child = os.fork()
    if child:
        return child
    status = 99
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        status = run(folder)
    finally:
        os._exit(status)


def results(folder: Path) -> dict[str, dict]:
    """What the records say but for seconds, by run."""
    found = {}
    for path in sorted((folder / "records").glob("*.json")):
        done = record.read(path)
        cells = {
            f"{prompts}.{name}": cell["value"]
            for prompts, metrics in done.metrics.items()
            for name, cell in metrics.items()
            if not name.startswith(TIMES)
        }
        found[done.id] = {"digest": done.digest, "cells": cells, "samples": done.samples, "schedule": done.schedule}
    return found


def finished(folder: Path) -> dict[Path, int]:
    """Every picture and score that is through, with the moment it was written."""
    files = [path for pattern in ("*/*/*.png", "*/*.scores/*.json") for path in (folder / "runs").glob(pattern)]
    return {path: path.stat().st_mtime_ns for path in files}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_run_killed_at_random_moments_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    monkeypatch.setattr(latency, "ROUNDS", 1)
    monkeypatch.setattr(tqdm, "monitor_interval", 0)  # its thread would not survive the fork
    rng, kills, number = np.random.default_rng(0), 0, 0
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / "suite.toml").write_text(SUITE)
    begun = time.perf_counter()
    assert run(whole) == 0
    seconds = time.perf_counter() - begun
    while kills < KILLS:
        number += 1
        folder = tmp_path / f"killed{number}"
        folder.mkdir()
        (folder / "suite.toml").write_text(SUITE)
        kept: dict[Path, int] = {}
        while True:
            child = start(folder)
            if kills < KILLS:
                time.sleep(rng.uniform(0, seconds / 3))
                os.kill(child, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            assert status in (0, -signal.SIGKILL)
            kills += status != 0
            now = finished(folder)
            assert kept.items() <= now.items()  # what was through stays as it was
            kept = now
            for path in (folder / "records").glob("*.json"):
                record.read(path)  # whole, or not there
            if status == 0:
                break
        assert results(folder) == results(whole)
    assert kills == KILLS
