"""The fitness of searches: its values, its journal, and searches from specs to records."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from baselines import Plan, PlanContext, method
from baselines.search import FitnessConfig
from benchmarks.__main__ import SOME_ROWS_ABSENT, main
from benchmarks.models.generate import sample
from benchmarks.prepare import kept
from benchmarks.prepare.search import Calibration, Fitness, read_journal
from benchmarks.specs import record
from benchmarks.specs.run import Setting
from dipgo import DipgoError, Schedule
from dipgo.pruner.losses import consistency
from tests.helpers.studio import TinyStudio
from tests.helpers.suites import DEFAULTS

SUITE = (
    DEFAULTS
    + """\
prompts = ["held-out"]
limit = 2
metrics = ["macs", "search", "psnr"]
[[run]]
id = "dense"
metrics = ["macs"]
[[run]]
id = "random"
method = "random_search"
params = {{ ratio = {ratio}, search = {{ evaluations = {evaluations}, population = 3 }}, fitness = {{ {fitness} }} }}
[[run]]
id = "genetic"
method = "genetic_search"
params = {{ ratio = 0.5, search = {{ evaluations = 6, population = 3 }}, fitness = {{ images = 2 }} }}
[[run]]
id = "ours"
method = "dipgo"
params = {{ ratio = 0.5, fitness = {{ images = 2 }} }}
[method.dipgo.train]
steps = 2
lr = 20.0
keep = 0.51
width = 16
checkpoint = false
"""
)

SETTING = Setting("embedded", "emoji-sd", "any", "float32", "plms", 5, 4.0, 64)


class FakeCalibration:
    """Losses by arithmetic; dies in the middle of a batch when it is told to."""

    def __init__(self, dies_after: float = math.inf, nan_after: float = math.inf) -> None:
        self.dies_after, self.nan_after, self.evaluated = dies_after, nan_after, []

    def losses(self, schedules):
        for schedule in schedules:
            if len(self.evaluated) >= self.dies_after:
                raise KeyboardInterrupt
            self.evaluated.append(schedule.digest)
        late = len(self.evaluated) > self.nan_after
        return [math.nan if late else float(schedule.reuse.argmin()) for schedule in schedules]


@pytest.fixture
def go(tiny, tiny_costs, tmp_path):
    def search(name: str, calibration: FakeCalibration, file: str = "journal.json") -> tuple[Fitness, Plan]:
        evaluated = Fitness(lambda: calibration, together=2, path=tmp_path / file, title=name)  # 2 at a time
        params = {"ratio": 0.6, "search": {"evaluations": 30, "population": 6}}
        sampler = tiny.sampler("ddim", 10)
        context = PlanContext(tiny.denoiser, tiny_costs, sampler, params, TinyStudio(fitness=evaluated))
        return evaluated, method(name).plan(context)

    return search


@pytest.mark.parametrize("name", ["random_search", "genetic_search"])
def test_a_killed_search_goes_on_and_ends_like_one_that_was_not(go, tmp_path, name):
    whole, plan = go(name, FakeCalibration(), "whole.json")
    attempts = [FakeCalibration(dies_after=5), FakeCalibration(dies_after=12), FakeCalibration()]
    for attempt in attempts[:2]:
        with pytest.raises(KeyboardInterrupt):
            go(name, attempt)
    evaluated, again = go(name, attempts[2])
    assert again.schedule.digest == plan.schedule.digest
    assert list(evaluated.journal.losses.items()) == list(whole.journal.losses.items())
    assert evaluated.evaluations == whole.evaluations == 30 == len(evaluated.journal.losses)
    lost = sum(len(attempt.evaluated) for attempt in attempts) - 30  # a batch of 2 that was under way, twice
    assert 0 <= lost <= 2
    third, _ = go(name, FakeCalibration(dies_after=0))  # finished: nothing is evaluated again
    assert third.evaluations == 30 and not read_journal(tmp_path / "journal.json").finished


def test_a_fitness_that_is_not_finite_ends_the_search_with_its_trace_kept(go, tmp_path):
    with pytest.raises(DipgoError, match=r"fitness of schedule [0-9a-f]{16} is nan; the 8 evaluations so far are kept"):
        go("random_search", FakeCalibration(nan_after=8))
    assert len(read_journal(tmp_path / "journal.json").losses) == 8


def test_a_schedule_is_evaluated_once(tiny, tmp_path):
    calibration = FakeCalibration()
    evaluated = Fitness(lambda: calibration, together=100, path=tmp_path / "j.json", title="")
    one, other = (Schedule(tiny.graph.sites, tiny.random_reuse(6, seed).numpy()) for seed in range(2))
    assert len(evaluated([one, other, one])) == 3 and evaluated.evaluations == 2
    evaluated([other])
    assert calibration.evaluated == [one.digest, other.digest] and evaluated.evaluations == 2


def test_the_trace_is_the_best_so_far():
    (searched,) = method("random_search").prepares({"ratio": 0.5})
    assert searched.trace({"losses": {"a": 3.0, "b": 4.0, "c": 1.0, "d": 2.0}}) == [(1, 3.0), (3, 1.0)]


def test_a_journal_of_an_earlier_search_reads(tmp_path):
    path = tmp_path / "j.json"
    path.write_text('{"losses": {"a": 1.0}, "seconds": 2.0, "plain": [3.0, 1.0], "finished": true}')
    assert read_journal(path).finished and kept.finished(path)


def test_a_broken_journal_is_named(tmp_path):
    path = tmp_path / "j.json"
    path.write_text('{"losses": ')
    with pytest.raises(DipgoError, match="j.json: not a search's journal"):
        read_journal(path)


def test_schedules_side_by_side_have_the_loss_of_one_alone():
    calibration = Calibration(SETTING, FitnessConfig(images=3))
    graph, rng = calibration.model.costs.graph, np.random.default_rng(0)
    schedules = [Schedule.dense(graph.sites, 6)]
    for share in (0.3, 0.6):
        reuse = rng.random((6, len(graph.sites))) < share
        reuse[0] = False
        schedules.append(Schedule(graph.sites, reuse))
    losses = calibration.losses(schedules)
    for schedule, loss in zip(schedules, losses, strict=True):
        plan = Plan(calibration.sampler, schedule, calibration.model.costs)
        images = sample(calibration.model, plan, calibration.captions, calibration.seeds, 4.0)
        assert loss == pytest.approx(consistency("ssim")(images, calibration.images).item(), abs=1e-5)
    assert losses[0] == pytest.approx(0, abs=1e-5) and losses[1] > 1e-3
    assert torch.isfinite(calibration.images).all()


class Bench:
    def __init__(self, folder: Path) -> None:
        self.folder, self.suite = folder, folder / "suite.toml"

    def run(self, *rows: str, ratio=0.5, evaluations=6, fitness="images = 2") -> int:
        self.suite.write_text(SUITE.format(ratio=ratio, evaluations=evaluations, fitness=fitness))
        chosen = [text for row in rows for text in ("--row", row)]
        folders = ["--workspace", str(self.folder / "runs"), "--records", str(self.folder / "records")]
        return main(["run", str(self.suite), *chosen, *folders, "--workers", "1"])

    def record(self, name: str) -> record.Record:
        return record.find(self.folder / "records", name)


def test_searches_from_specs_to_records(tmp_path, monkeypatch):
    bench = Bench(tmp_path)
    # Two steps of training may spread the scores too little for the ratio.
    assert bench.run("random", "genetic", "ours") in (
        0,
        SOME_ROWS_ABSENT,
    )
    for name in ("random", "genetic"):
        found = bench.record(name)
        cells = {key: cell["value"] for key, cell in found.metrics["all"].items()}
        assert cells["evaluations"] == 6 and cells["search_seconds"] > 0 and cells["pruned_ratio"] > 0.4
        assert cells["evaluations_per_second"] == pytest.approx(6 / cells["search_seconds"])
        assert found.trace[-1][1] == cells["fitness"]
        assert json.loads(json.dumps(found.trace)) == [list(step) for step in found.trace]
    ours = bench.record("ours")
    if ours.metrics:
        assert {"fitness", "search_seconds"} <= set(ours.metrics["all"]) and "gradients" in ours.absent["evaluations"]
    monkeypatch.setattr(Calibration, "losses", pytest.fail)  # from here on everything is in the journals
    for path in (tmp_path / "records").iterdir():
        path.unlink()
    assert bench.run("random", "genetic") == 0
    assert bench.record("random").metrics["all"]["evaluations"]["value"] == 6


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ratio": 0.99}, "prunes 0.99 of the MACs"),
        ({"evaluations": 0}, "search.evaluations is 0"),
        ({"fitness": "images = 0"}, "fitness.images is 0; it must lie between 1 and"),
        ({"fitness": "images = 9999999"}, "fitness.images is 9999999"),
        ({"fitness": 'prompts = "trian"'}, "did you mean train"),
        ({"fitness": 'loss = "sism"'}, "did you mean ssim"),
        ({"fitness": "pictures = 2"}, "unknown parameter 'pictures'"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path, capsys, change, says):
    bench = Bench(tmp_path)
    assert bench.run("random", **change) != 0
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and says in errors[0]
