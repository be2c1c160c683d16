"""Learned forecasts in the harness: what decides them, and that they are kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from baselines import learned_forecast, method
from benchmarks.prepare import kept
from benchmarks.prepare.studio import RunStudio
from benchmarks.runs.tasks import prepare
from benchmarks.specs.run import RunSpec
from dipgo.errors import DipgoError
from tests.benchmarks.prepare.conftest import spec_of

LEARN = {"rounds": 1, "memory": 2, "pictures": 3, "prompts": "classes"}
TRAIN = {"steps": 1, "lr": 20.0, "keep": 0.51, "width": 8, "prompts": "classes"}
SPEC = spec_of("learned_forecast", 8, calls=3, learn=LEARN)


def plan(spec: RunSpec, folder):
    return method(spec.method).plan(RunStudio(spec, folder, plan_of=pytest.fail).context())


def test_a_forecast_is_learned_once_and_kept(tiny_zoo, tmp_path, monkeypatch):
    (path,) = kept.preparations(SPEC, tmp_path)
    prepare(SPEC, tmp_path, path)
    assert path.exists()
    monkeypatch.setattr(learned_forecast, "learn_forecast", pytest.fail)
    made = plan(SPEC, tmp_path)
    assert (~made.schedule.reuse).sum() == 3 and made.schedule.depth == 2
    again = plan(replace(SPEC, id="another"), tmp_path)
    np.testing.assert_array_equal(again.schedule.coefficients, made.schedule.coefficients)
    done = kept.read(path)
    assert done["seconds"] > 0 and done["peak_memory"] > 1e8
    assert done["losses"] == sorted(done["losses"], reverse=True)


def test_a_forecast_after_a_training_needs_it(tiny_zoo, tmp_path):
    spec = spec_of("dipgo", 3, ratio=0.3, train={**TRAIN, "unit": "call"}, learn={**LEARN, "shift": 0})
    pruner, forecast = kept.preparations(spec, tmp_path).items()
    assert [kept.path_of(spec, need, tmp_path) for need in forecast[1].needs.values()] == [pruner[0]]
    other = replace(spec, params={**spec.params, "ratio": 0.5})
    assert [*kept.preparations(other, tmp_path)][0] == pruner[0] != [*kept.preparations(other, tmp_path)][1]


@pytest.mark.parametrize("params", [{"calls": 4}, {"learn": {**LEARN, "seed": 1}}, {"learn": {**LEARN, "pictures": 4}}])
def test_other_settings_are_another_forecast(tmp_path, params):
    other = replace(SPEC, params={**SPEC.params, **params})
    assert kept.preparations(other, tmp_path).keys().isdisjoint(kept.preparations(SPEC, tmp_path))


def test_bad_settings_are_named(tiny_zoo, tmp_path):
    with pytest.raises(DipgoError, match="did you mean pictures"):
        plan(replace(SPEC, params={"calls": 3, "learn": {"picture": 3}}), tmp_path)
    with pytest.raises(DipgoError, match=r"learn.pictures is 99"):
        plan(replace(SPEC, params={"calls": 3, "learn": {**LEARN, "pictures": 99}}), tmp_path)
