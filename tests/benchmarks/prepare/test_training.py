from __future__ import annotations

import json
import mmap

import numpy as np
import pytest
import torch

from benchmarks.machine.provenance import memory_meter
from benchmarks.models import model as models
from benchmarks.prepare import training
from benchmarks.specs.run import RunSpec
from benchmarks.supply import pipelines, zoo
from dipgo import DipgoError, Sampler
from tests.helpers.pipelines import CLASSES, dit

SETTINGS = {"steps": 2, "lr": 1.0, "width": 8, "prompts": "classes"}
SPEC = RunSpec(
    id="ours",
    profile="embedded",
    model="tiny-dit",
    revision="0",
    method="dipgo",
    scheduler="ddim",
    steps=3,
    guidance=2.0,
    resolution=16,
    dtype="float32",
    prompts=("classes",),
    limit=2,
    seed=0,
    metrics=(),
)


@pytest.fixture
def tiny_zoo(monkeypatch, tmp_path):
    """The zoo holds one class-conditional model and one prompt set of its classes."""
    torch.manual_seed(0)
    dit().save_pretrained(tmp_path / "dit")
    model = models.prepared(SPEC.model, pipelines.read(tmp_path / "dit"))
    sets = {"classes": [zoo.Prompt(i, CLASSES[i % 3], "", "") for i in range(60)]}
    monkeypatch.setattr(models, "load", lambda setting: model)
    monkeypatch.setattr(zoo, "prompts", lambda name: sets[name])
    return model


@pytest.mark.parametrize("unit", ["output", "delta", "call"])
def test_scores_are_those_of_the_units_sites(tiny_zoo, tmp_path, unit):
    done = training.train_once(SPEC, {**SETTINGS, "unit": unit}, tmp_path)
    assert done.scores.shape == (3, len(tiny_zoo.costs_of(unit).graph.sites)) and (done.scores[0] == 1).all()
    assert len(done.log) == 2 and done.seconds > 0 and done.peak_memory > 1e8


def test_a_training_is_kept_and_read_back(tiny_zoo, tmp_path, monkeypatch):
    done = training.train_once(SPEC, SETTINGS, tmp_path)
    monkeypatch.setattr(training, "train_pruner", pytest.fail)
    again = training.train_once(SPEC, SETTINGS, tmp_path)
    np.testing.assert_allclose(again.scores, done.scores)
    assert (again.log, again.seconds, again.peak_memory) == (done.log, done.seconds, done.peak_memory)
    assert json.loads(training.path_of(SPEC, SETTINGS, tmp_path).read_text())["model"] == SPEC.model


def test_as_many_dense_pictures_are_made_as_the_training_looks_at(tiny_zoo, monkeypatch):
    made = []
    sample = training.sample

    def counting(model, plan, captions, *rest):
        made.append(len(captions))
        return sample(model, plan, captions, *rest)

    monkeypatch.setattr(training, "sample", counting)
    monkeypatch.setattr(training, "CHUNK", 2)
    monkeypatch.setattr(training, "pictures_at_once", lambda resolution: 3)
    sampler = Sampler("ddim", tiny_zoo.scheduler_config, SPEC.steps)
    batches = training._batches(tiny_zoo, sampler, SPEC, {"steps": 3, "batch": 2, "prompts": "classes"})
    drawn = [next(batches) for _ in range(3)]
    assert made == [3, 1, 2]
    seeds = [seed for batch in drawn for seed in batch.seeds]
    assert len(set(seeds)) == 6 and all(batch.images.shape == (2, 3, 16, 16) for batch in drawn)


def test_usual_settings_change_no_digest_and_others_do(tmp_path):
    def path(**settings):
        return training.path_of(SPEC, settings, tmp_path)

    assert path().stem == "82519e983de03470"  # of the trainings before forecasts: who has one keeps it
    assert path() == path(unit="output", prompts="train", order=0, coefficient_lr=0.0)
    others = [{"unit": "delta"}, {"prompts": "classes"}, {"lr": 3.0}, {"batch": 2}, {"order": 1}]
    assert len({path(), *(path(**other) for other in [*others, {"coefficient_lr": 0.3}])}) == 7


def test_bad_settings_are_named(tiny_zoo, tmp_path):
    with pytest.raises(DipgoError, match="unknown training setting 'step'; did you mean steps"):
        training.path_of(SPEC, {"step": 2}, tmp_path)
    with pytest.raises(DipgoError, match="unknown unit 'deltas'; did you mean delta"):
        training.train_once(SPEC, {**SETTINGS, "unit": "deltas"}, tmp_path)
    assert not list(tmp_path.glob("*.json"))


def test_the_memory_meter_sees_what_was_freed_again():
    with memory_meter(interval=0.01) as peak:
        before = peak()
        block = mmap.mmap(-1, 200_000_000)  # never memory that the process has already
        for _ in range(200):
            block.write(b"1" * 1_000_000)  # piece by piece, or the bytes to write would count as much again
        peak()
        block.close()
        assert 150e6 < peak() - before < 400e6
