from __future__ import annotations

import pytest

from benchmarks.jobs import Job, run_jobs
from benchmarks.spec import BenchmarkError
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
    jobs.add("full disk", error=BenchmarkError("no space"))
    jobs.add("free")
    with pytest.raises(BenchmarkError, match="no space"):
        jobs.run()
    assert jobs.ran == ["full disk"]
