"""Pruners in the harness: what decides them, what they look at, and that they are kept."""

from __future__ import annotations

import mmap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from baselines import learned_schedule, method
from baselines.learned_schedule import PrunerTraining, Training, batches_of
from benchmarks.machine.provenance import memory_meter
from benchmarks.prepare import kept, studio
from benchmarks.prepare.studio import RunStudio
from dipgo import DipgoError
from tests.benchmarks.prepare.conftest import spec_of

SETTINGS = {"steps": 2, "lr": 1.0, "width": 8, "prompts": "classes"}


def trained(workspace: Path, **settings):
    """The file of a training after it was made, and its scores."""
    spec = spec_of("dipgo", 3, ratio=0.5, train=SETTINGS | settings)
    ((path, training),) = kept.preparations(spec, workspace).items()
    return path, training.make(RunStudio(spec, workspace).context())


@pytest.mark.parametrize("unit", ["output", "delta", "call"])
def test_scores_are_those_of_the_units_sites(tiny_zoo, tmp_path, unit):
    path, scores = trained(tmp_path, unit=unit)
    assert scores.shape == (3, len(tiny_zoo.costs_of(unit).graph.sites)) and (scores[0] == 1).all()
    done = kept.read(path)
    assert len(done["log"]) == 2 and done["seconds"] > 0 and done["peak_memory"] > 1e8


def test_a_training_is_kept_and_read_back(tiny_zoo, tmp_path, monkeypatch):
    path, scores = trained(tmp_path)
    before = path.read_bytes()
    monkeypatch.setattr(learned_schedule, "train_pruner", pytest.fail)
    np.testing.assert_array_equal(trained(tmp_path)[1], scores)
    assert path.read_bytes() == before and kept.read(path)["model"] == "tiny-dit"


def test_as_many_dense_pictures_are_made_as_the_training_looks_at(tiny_zoo, tmp_path, monkeypatch):
    made = []
    sample = studio.sample

    def counting(model, plan, captions, *rest):
        made.append(len(captions))
        return sample(model, plan, captions, *rest)

    monkeypatch.setattr(studio, "sample", counting)
    monkeypatch.setattr(learned_schedule, "CHUNK", 2)
    monkeypatch.setattr(studio, "pictures_at_once", lambda resolution: 3)
    looked = RunStudio(spec_of("dipgo", 3, ratio=0.5), tmp_path)
    batches = batches_of(Training(steps=3, batch=2, prompts="classes"), looked)
    drawn = [next(batches) for _ in range(3)]
    assert made == [3, 1, 2]
    seeds = [seed for batch in drawn for seed in batch.inputs.seeds]
    assert len(set(seeds)) == 6 and all(batch.images.shape == (2, 3, 16, 16) for batch in drawn)


def test_usual_settings_change_no_address_and_others_do(tmp_path):
    def path(sampler_steps=3, **settings):
        spec = spec_of("dipgo", sampler_steps, ratio=0.5)
        return kept.path_of(spec, PrunerTraining(Training(**settings)), tmp_path)

    assert path() == path(unit="output", prompts="train", order=0, coefficient_lr=0.0)
    others = [{"unit": "delta"}, {"prompts": "classes"}, {"lr": 3.0}, {"batch": 2}, {"order": 1}]
    assert len({path(), *(path(**other) for other in [*others, {"coefficient_lr": 0.3}])}) == 7
    assert path(sampler_steps=4) != path() != path(steps=4)  # both are called steps


def test_bad_settings_are_named(tiny_zoo, tmp_path):
    with pytest.raises(DipgoError, match="dipgo.train: unknown parameter 'step'; did you mean steps"):
        trained(tmp_path, step=2)
    with pytest.raises(DipgoError, match="unknown unit 'deltas'; did you mean delta"):
        trained(tmp_path, unit="deltas")
    assert not list((tmp_path / "pruners").glob("*"))


def test_a_run_without_settings_trains_by_the_defaults(tmp_path):
    assert method("dipgo").prepares({"ratio": 0.5}) == (PrunerTraining(Training()),)
    spec = spec_of("dipgo", 3, ratio=0.5)
    (path,) = kept.preparations(spec, tmp_path)
    assert list(kept.preparations(replace(spec, params={"ratio": 0.5, "train": {}}), tmp_path)) == [path]


def test_the_memory_meter_sees_what_was_freed_again():
    with memory_meter(interval=0.01) as peak:
        before = peak()
        block = mmap.mmap(-1, 200_000_000)  # never memory that the process has already
        for _ in range(200):
            block.write(b"1" * 1_000_000)  # piece by piece, or the bytes to write would count as much again
        peak()
        block.close()
        assert 150e6 < peak() - before < 400e6
