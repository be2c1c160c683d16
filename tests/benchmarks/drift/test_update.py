"""An update of the drift baseline is killed again and again: there is always a whole baseline, the old or the new."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tqdm import tqdm

from benchmarks.drift import baseline, command, repeats
from benchmarks.drift.cases import CASES

DRAWN = ("dit", "lcm")  # the quickest two


def contents(folder: Path) -> dict[str, object]:
    """The bytes of all files but the index, and the index without dates."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    index = json.loads(files.pop(baseline.INDEX))
    index["renewals"] = [renewed["reason"] for renewed in index["renewals"]]
    return files | {"index": index}


@pytest.fixture
def few(monkeypatch):
    """Two cases of two pictures, and limits that no repeat has to find."""
    for name in set(CASES) - set(DRAWN):
        monkeypatch.delitem(CASES, name)
    for name in DRAWN:
        monkeypatch.setitem(CASES, name, replace(CASES[name], count=2))
    monkeypatch.setattr(repeats, "limits", lambda folder: dict.fromkeys(baseline.load(folder).outcomes, {"psnr": 1.0}))
    monkeypatch.setattr(tqdm, "monitor_interval", 0)  # its thread would not survive the fork


def update(folder: Path, writes: int | None) -> int:
    """Update in a process of its own, which kills itself before a write to the folder; return its id."""
    child = os.fork()
    if child:
        return child
    status = 99
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        replaced, left = os.replace, [writes]

        def dying(source, target):
            if Path(target).parent == folder and left[0] is not None:
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
            replaced(source, target)

        os.replace = dying
        command.update("new", folder)
        status = 0
    finally:
        os._exit(status)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_update_leaves_a_whole_baseline_and_ends_as_if_it_had_not_been(few, tmp_path):
    whole, killed, rng = tmp_path / "whole", tmp_path / "killed", np.random.default_rng(0)
    drawn = baseline.draw()
    darker = {name: replace(each, pixels=each.pixels // 2) for name, each in drawn.outcomes.items()}
    for folder in (whole, killed):
        baseline.store(replace(drawn, outcomes=darker), "old", folder)
    old, begun = contents(killed), time.perf_counter()
    command.update("new", whole)
    seconds = time.perf_counter() - begun
    for writes in [0, 1, 2, *[None] * 5]:  # before each file of the new baseline, and at random moments
        child = update(killed, writes)
        if writes is None:
            time.sleep(rng.uniform(0, seconds / 2))
            os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        assert (baseline.load(killed).outcomes["dit"].pixels == darker["dit"].pixels).all()
        assert old.items() <= contents(killed).items()
    assert os.waitstatus_to_exitcode(os.waitpid(update(killed, None), 0)[1]) == 0
    assert contents(killed) == contents(whole)
