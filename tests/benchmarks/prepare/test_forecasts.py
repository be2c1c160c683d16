"""Learned forecasts in the harness: what decides them, and that they are kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from baselines import method
from benchmarks.models import model as models
from benchmarks.prepare import forecasts
from benchmarks.runs.tasks import FORECASTS, context_of, forecast
from benchmarks.specs.run import RunSpec
from benchmarks.supply import pipelines, zoo
from dipgo.errors import DipgoError
from tests.helpers.pipelines import CLASSES, dit

LEARN = {"rounds": 1, "memory": 2, "pictures": 3, "prompts": "classes"}
SPEC = RunSpec(
    id="learned",
    profile="embedded",
    model="tiny-dit",
    revision="0",
    method="learned_forecast",
    scheduler="ddim",
    steps=8,
    guidance=2.0,
    resolution=16,
    dtype="float32",
    prompts=("classes",),
    limit=2,
    seed=0,
    metrics=(),
    params={"calls": 3, "learn": LEARN},
)


@pytest.fixture
def tiny_zoo(monkeypatch, tmp_path):
    """The zoo holds one class-conditional model and one prompt set of its classes."""
    torch.manual_seed(0)
    dit().save_pretrained(tmp_path / "dit")
    model = models.prepared(SPEC.model, pipelines.read(tmp_path / "dit"))
    monkeypatch.setattr(models, "load", lambda setting: model)
    monkeypatch.setattr(zoo, "prompts", lambda name: [zoo.Prompt(i, CLASSES[i % 3], "", "") for i in range(60)])


def plan(spec: RunSpec, folder):
    return method(spec.method)(context_of(spec, folder, plan_of=pytest.fail))


def test_a_forecast_is_learned_once_and_kept(tiny_zoo, tmp_path, monkeypatch):
    forecast(SPEC, tmp_path)
    path = forecasts.path_of(SPEC, tmp_path / FORECASTS)
    assert path.exists()
    monkeypatch.setattr(forecasts, "learn_forecast", pytest.fail)
    found = plan(SPEC, tmp_path)
    assert (~found.schedule.reuse).sum() == 3 and found.schedule.depth == 2
    again = plan(replace(SPEC, id="another"), tmp_path)
    np.testing.assert_array_equal(again.schedule.coefficients, found.schedule.coefficients)
    kept = forecasts.learn_once(SPEC, found, LEARN, tmp_path / FORECASTS)
    assert kept.seconds > 0 and kept.peak_memory > 1e8 and kept.losses == sorted(kept.losses, reverse=True)


@pytest.mark.parametrize("params", [{"calls": 4}, {"learn": {**LEARN, "seed": 1}}, {"learn": {**LEARN, "pictures": 4}}])
def test_other_settings_are_another_forecast(tmp_path, params):
    other = replace(SPEC, params={**SPEC.params, **params})
    assert forecasts.path_of(other, tmp_path) != forecasts.path_of(SPEC, tmp_path)


def test_bad_settings_are_named(tiny_zoo, tmp_path):
    with pytest.raises(DipgoError, match="did you mean pictures"):
        plan(replace(SPEC, params={"calls": 3, "learn": {"picture": 3}}), tmp_path)
    with pytest.raises(DipgoError, match=r"learn.pictures is 99"):
        plan(replace(SPEC, params={"calls": 3, "learn": {**LEARN, "pictures": 99}}), tmp_path)
