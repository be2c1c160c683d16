"""Lessons that are killed and go on, and methods that bring a lesson of their own."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from baselines import METHODS, method
from benchmarks.prepare import kept
from benchmarks.prepare.studio import RunStudio
from dipgo import DipgoError
from tests.benchmarks.prepare.conftest import spec_of
from tests.helpers import toy_method
from tests.helpers.toy_method import Changes

TIMES = ("seconds", "peak_memory")


@pytest.fixture
def toy(tiny_zoo, monkeypatch):
    """A method that learns is one new file and one registry line."""
    monkeypatch.setitem(METHODS.data, "toy", "tests.helpers.toy_method")
    monkeypatch.setattr(kept, "KEEP_EVERY", 0.0)
    return spec_of("toy", 6, calls=2, look={"pictures": 6})


class Kill(BaseException):
    """A moment at which a process would be gone."""


def killed_after(monkeypatch, count: int) -> None:
    left, changes = [count], Changes.changes

    def dying(self, context, pictures):
        if not left[0]:
            raise Kill
        left[0] -= 1
        return changes(self, context, pictures)

    monkeypatch.setattr(Changes, "changes", dying)


def result(path: Path) -> dict:
    return {name: value for name, value in json.loads(path.read_text()).items() if name not in TIMES}


def plan(spec, workspace: Path):
    return method("toy").plan(RunStudio(spec, workspace).context())


def test_a_method_of_one_file_learns_and_plans(toy, tmp_path):
    made = plan(toy, tmp_path)
    ((path, lesson),) = kept.preparations(toy, tmp_path).items()
    assert path.parent.name == "changes" and made.costs.graph.execute(made.schedule).computed_calls.sum() == 2
    done = kept.read(path)
    assert lesson.cells(done) == {"training_seconds": done["seconds"], "training_peak_memory": done["peak_memory"]}
    assert not list(path.parent.glob("*.state"))


def test_a_lesson_killed_anywhere_ends_as_if_it_had_not_been(toy, tmp_path):
    whole, often = tmp_path / "whole", tmp_path / "often"
    plan(toy, whole)
    rng = np.random.default_rng(0)
    for _ in range(100):
        with pytest.MonkeyPatch.context() as patch:
            killed_after(patch, int(rng.integers(0, 3)))
            try:
                plan(toy, often)
            except Kill:
                continue
            break
    (one,), (other,) = kept.preparations(toy, whole), kept.preparations(toy, often)
    assert result(one) == result(other) and not list(other.parent.glob("*.state"))


def test_the_seconds_before_a_kill_count(toy, tmp_path, monkeypatch):
    with pytest.MonkeyPatch.context() as patch:
        killed_after(patch, 3)
        with pytest.raises(Kill):
            plan(toy, tmp_path)
    (path,) = kept.preparations(toy, tmp_path)
    _, before = kept._read_state(path.with_suffix(".state"))
    seconds = iter(np.arange(0.0, 1e6, 100.0))
    monkeypatch.setattr(kept, "perf_counter", lambda: next(seconds))
    plan(toy, tmp_path)
    assert kept.read(path)["seconds"] > before["seconds"] + 100 > 100


def test_a_broken_state_or_result_is_named(toy, tmp_path):
    (path,) = kept.preparations(toy, tmp_path)
    path.parent.mkdir()
    for broken in (path.with_suffix(".state"), path):
        broken.write_text("{")
        with pytest.raises(DipgoError, match=f"{broken.name}: not a whole"):
            plan(toy, tmp_path)


def test_two_runs_at_once_make_a_shared_lesson_once(toy, tmp_path, monkeypatch):
    begun, steps = [], Changes.steps

    def counting(self, context, state):
        begun.append(threading.get_ident())
        yield from steps(self, context, state)

    monkeypatch.setattr(Changes, "steps", counting)
    context, (lesson,) = RunStudio(toy, tmp_path).context(), kept.preparations(toy, tmp_path).values()
    threads = [threading.Thread(target=lesson.make, args=(context,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(begun) == 1


def test_a_lesson_of_no_steps_is_refused(toy, tmp_path):
    with pytest.raises(DipgoError, match="it has no steps"):
        plan(spec_of("toy", 6, calls=2, look={"pictures": 0}), tmp_path)


def test_the_toy_is_one_file():
    assert Path(toy_method.__file__).read_text().count("\n") < 100
