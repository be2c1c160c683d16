"""Ctrl-C of a command, as a terminal sends it: to all processes of its group."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from benchmarks import ROOT
from dipgo.interrupts import INTERRUPTED, run_and_exit
from tests.helpers.suites import DEFAULTS

LISTENING = """
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background is told to ignore Ctrl-C
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
SUITE = (
    DEFAULTS
    + """\
prompts = ["held-out"]
limit = 300
metrics = ["macs", "psnr"]
[[run]]
id = "dense"
metrics = ["macs"]
[[run]]
id = "searched"
method = "random_search"
params = { ratio = 0.5, search = { evaluations = 900, population = 2 }, fitness = { images = 2 } }
"""
)


def members(group: int) -> list[int]:
    """The living processes of a group."""
    listed = subprocess.run(["ps", "-eo", "pgid=,pid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listed.splitlines()]
    return [int(pid) for pgid, pid, status in rows if int(pgid) == group and "Z" not in status]


def ends_in_one_line(command: list[str], ready: Callable[[], bool]) -> None:
    """Interrupt the command once it is ready, and look at what it says and leaves behind."""
    words = [sys.executable, "-c", LISTENING, *command]
    started = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 300
    while not ready() and started.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert started.poll() is None, started.communicate()[1]
    os.killpg(started.pid, signal.SIGINT)
    said = started.communicate(timeout=100)[1]
    assert started.returncode == INTERRUPTED, said
    assert (
        said.count("interrupted; ") == 1 and said.endswith("\n") and said.splitlines()[-1].count("interrupted; ") == 1
    )
    assert not any(word in said for word in ("Traceback", "KeyboardInterrupt", "leaked", "Warning")), said
    time.sleep(1)
    assert not members(started.pid)


def after(seconds: float) -> Callable[[], bool]:
    begun = time.monotonic()
    return lambda: time.monotonic() - begun > seconds


@pytest.mark.parametrize("seconds", [2, 4])
def test_while_libraries_are_loaded(tmp_path, seconds):
    gates = tmp_path / "gates"
    os.mkfifo(gates)  # whoever reads it waits
    output = ["-o", str(tmp_path / "s.json")]
    imported = ["dipgo", "import-released", str(gates), "--model", "sd15", "--scheduler", "ddim", *output]
    ends_in_one_line(imported, after(seconds))
    ends_in_one_line(["benchmarks", "drift"], after(seconds))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_while_pictures_are_drawn_and_schedules_searched(tmp_path, workers):
    suite = tmp_path / "suite.toml"
    suite.write_text(SUITE)
    folders = ["--workspace", str(tmp_path / "runs"), "--records", str(tmp_path / "records")]
    command = ["benchmarks", "run", str(suite), *folders, "--workers", workers, "--batch", "2"]

    def under_way() -> bool:
        drawn, searched = tmp_path.glob("runs/*/*/*.png"), tmp_path.glob("runs/searches/*.json")
        return any(drawn) and (workers == "1" or any(searched))

    ends_in_one_line(command, under_way)
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("status", [0, 1, 3])
def test_without_an_interrupt_the_status_is_the_commands(status):
    with pytest.raises(SystemExit) as exit:
        run_and_exit(lambda: status, "nothing was written")
    assert exit.value.code == status
