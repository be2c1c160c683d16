"""Lessons that are killed and go on, and methods that bring a lesson of their own."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from baselines import METHODS, Plan, learned_schedule, method
from benchmarks.prepare import kept, studio
from benchmarks.prepare.search import Calibration
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


def plan(spec, workspace: Path) -> Plan:
    return method(spec.method).plan(RunStudio(spec, workspace).context())


def make(spec, workspace: Path) -> None:
    for preparation in kept.preparations(spec, workspace).values():
        preparation.make(RunStudio(spec, workspace).context())


def test_a_method_of_one_file_learns_and_plans(toy, tmp_path):
    made = plan(toy, tmp_path)
    ((path, lesson),) = kept.preparations(toy, tmp_path).items()
    assert path.parent.name == "changes" and made.costs.graph.execute(made.schedule).computed_calls.sum() == 2
    done = kept.read(path)
    assert lesson.cells(done) == {"training_seconds": done["seconds"], "training_peak_memory": done["peak_memory"]}
    assert not list(path.parent.glob("*.state"))


LEARN = {"rounds": 3, "pictures": 2, "prompts": "classes"}
TRAIN = {"steps": 7, "lr": 20.0, "keep": 0.51, "width": 8, "prompts": "classes"}
SEARCH = {"search": {"evaluations": 12, "population": 3}, "fitness": {"images": 2, "prompts": "classes"}}
MADE = {
    "toy": spec_of("toy", 6, calls=2, look={"pictures": 6}),
    "training": spec_of("dipgo", 3, ratio=0.5, train=TRAIN),
    "training of coefficients": spec_of(
        "dipgo", 3, ratio=0.5, train=TRAIN | {"unit": "call", "order": 1, "coefficient_lr": 0.1, "accumulate": 2}
    ),
    "forecast": spec_of("learned_forecast", 8, calls=3, learn=LEARN),
    "training and forecast": spec_of(
        "dipgo", 4, ratio=0.5, train=TRAIN | {"steps": 2, "unit": "call"}, learn=LEARN | {"shift": 0}
    ),
    "random search": spec_of("random_search", 8, ratio=0.5, **SEARCH),
    "genetic search": spec_of("genetic_search", 8, ratio=0.5, **SEARCH),
}


@pytest.mark.parametrize("name", MADE)
def test_what_is_prepared_under_kills_is_what_it_would_have_been(tiny_zoo, toy, tmp_path, monkeypatch, name):
    """The kills come at random calls of the denoiser."""
    monkeypatch.setattr(learned_schedule, "CHUNK", 3)
    monkeypatch.setattr(studio, "calibration", Calibration)  # the usual one outlives a kill
    spec, rng, calls, kills = MADE[name], np.random.default_rng(0), [0], 0

    def count(module, args) -> None:
        calls[0] -= 1
        if not calls[0]:
            raise Kill

    tiny_zoo.denoiser.register_forward_pre_hook(count)
    make(spec, tmp_path / "whole")
    most = -calls[0]
    while True:
        calls[0] = int(rng.integers(1, most * 2 // 3))
        torch.manual_seed(kills)
        try:
            make(spec, tmp_path / "killed")
        except Kill:
            kills += 1
            continue
        break
    assert kills
    for one, other in zip(*(kept.preparations(spec, tmp_path / each) for each in ("whole", "killed")), strict=True):
        assert result(one) == result(other) and not list(other.parent.glob("*.state"))


def test_the_seconds_before_a_kill_count(toy, tmp_path, monkeypatch):
    with pytest.MonkeyPatch.context() as patch:
        killed_after(patch, 3)
        with pytest.raises(Kill):
            plan(toy, tmp_path)
    (path,) = kept.preparations(toy, tmp_path)
    _, before = kept._read_state(path.with_suffix(".state"))
    assert len(before["log"]) == 3
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


def test_searches_of_specs_that_differ_in_their_pictures_take_turns(tiny_zoo, tmp_path, monkeypatch):
    """They share a journal: what one has evaluated, the other finds."""
    evaluated, losses = [], Calibration.losses

    def counting(self, schedules):
        evaluated.extend(schedule.digest for schedule in schedules)
        return losses(self, schedules)

    monkeypatch.setattr(studio, "calibration", Calibration)
    monkeypatch.setattr(Calibration, "losses", counting)
    specs = [replace(MADE["random search"], limit=limit) for limit in (1, 2, 3)]
    assert len({spec.digest for spec in specs}) == 3
    contexts = [RunStudio(spec, tmp_path).context() for spec in specs]
    searches = [method(spec.method).prepares(spec.params)[0] for spec in specs]
    threads = [threading.Thread(target=s.make, args=(c,)) for s, c in zip(searches, contexts, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(evaluated) == len(set(evaluated)) == 12
