from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import ROOT
from benchmarks.machine.jobs import Job, run_jobs
from dipgo.errors import DipgoError, NotWritten


class Jobs:
    """Jobs that note when they run."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.jobs: dict[str, Job] = {}

    def add(self, name: str, *needs: str, error: Exception | None = None) -> None:
        def work(name: str) -> None:
            self.ran.append(name)
            if error:
                raise error

        self.jobs[name] = Job(name, lambda: (work, name), needs)

    def run(self) -> dict:
        return run_jobs(self.jobs, workers=1)


@pytest.fixture
def jobs() -> Jobs:
    return Jobs()


def test_the_first_ready_job_runs_first(jobs):
    jobs.add("late", "early")
    jobs.add("free")
    jobs.add("early", "done before")
    assert jobs.run() == {} and jobs.ran == ["free", "early", "late"]


def test_a_failed_job_fails_those_that_need_it_and_no_other(jobs):
    error = DipgoError("it broke")
    jobs.add("broken", error=error)
    jobs.add("needs it", "broken")
    jobs.add("needs that", "needs it")
    jobs.add("free")
    assert jobs.run() == {"broken": error, "needs it": error, "needs that": error}
    assert jobs.ran == ["broken", "free"]


def test_a_job_is_asked_for_its_work_only_when_its_needs_are_done(jobs):
    jobs.add("first")

    def call():
        assert jobs.ran == ["first"]
        raise DipgoError("cannot be planned")

    jobs.jobs["second"] = Job("second", call, ("first",))
    assert set(jobs.run()) == {"second"}


@pytest.mark.parametrize("error", [RuntimeError("it diverged"), ZeroDivisionError("0"), KeyError("a"), TypeError("b")])
def test_any_error_costs_its_own_job_and_says_which(jobs, error):
    jobs.add("broken", error=error)
    jobs.add("needs it", "broken")
    jobs.add("free")
    failed = jobs.run()
    assert jobs.ran == ["broken", "free"] and failed.keys() == {"broken", "needs it"}
    assert str(failed["needs it"]) == f"broken failed: {type(error).__name__}: {error}"


@pytest.mark.parametrize("error", [NotWritten("no space"), KeyboardInterrupt()])
def test_what_concerns_all_ends_the_work(jobs, error):
    jobs.add("full disk", error=error)
    jobs.add("free")
    with pytest.raises(type(error)):
        jobs.run()
    assert jobs.ran == ["full disk"]


def linger(folder: Path) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(300)


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


CODE = """
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background is told to ignore Ctrl-C
from benchmarks.machine.jobs import Job, run_jobs
from tests.benchmarks.machine.test_jobs import linger
try:
    run_jobs({i: Job("", lambda: (linger, Path(sys.argv[1]))) for i in range(2)}, 2)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_suite_and_say_nothing(tmp_path, sent):
    """As a terminal does it: Ctrl-C goes to all processes of the group."""
    suite = subprocess.Popen(
        [sys.executable, "-c", CODE, str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 300
    while len(workers := [int(path.name) for path in tmp_path.iterdir()]) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(workers) == 2 and all(map(alive, workers))
    if sent == signal.SIGINT:
        os.killpg(suite.pid, sent)
    else:
        suite.send_signal(sent)
    _, said = suite.communicate(timeout=300)
    if sent == signal.SIGINT:
        assert suite.returncode == 130 and not said
        assert not any(map(alive, workers))
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, workers))
