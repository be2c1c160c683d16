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
from dipgo import DipgoError


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


def test_any_other_error_ends_the_work(jobs):
    jobs.add("full disk", error=OSError("no space"))
    jobs.add("free")
    with pytest.raises(OSError, match="no space"):
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


def test_workers_end_with_a_killed_suite(tmp_path):
    jobs = "{i: Job('', lambda: (linger, Path(sys.argv[1]))) for i in range(2)}"
    imports = "import sys; from pathlib import Path; from benchmarks.machine.jobs import Job, run_jobs"
    code = f"{imports}; from tests.test_jobs import linger\nrun_jobs({jobs}, 2)"
    suite = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    deadline = time.monotonic() + 300
    try:
        while len(workers := [int(path.name) for path in tmp_path.iterdir()]) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(workers) == 2 and all(map(alive, workers))
    finally:
        suite.send_signal(signal.SIGKILL)
        suite.wait()
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, workers))
