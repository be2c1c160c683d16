"""The threshold of a dynamic cache that spends the MACs that a run asks for."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from baselines import PlanContext, method
from baselines.first_block_cache import Params, prepares
from baselines.tea_cache import _polynomial
from baselines.threshold import FURTHEST, Bisection
from dipgo import DipgoError, Sampler
from dipgo.families import DIT, SD15
from dipgo.state import State
from tests.conftest import SD_SCHEDULER
from tests.helpers.contract import instance
from tests.helpers.studio import TinyStudio

LEARN = Bisection(pictures=2, rounds=4)


@pytest.fixture(scope="module")
def context() -> PlanContext:
    made = instance(DIT)
    studio = TinyStudio(conditioning=lambda rows: {"class_labels": torch.arange(rows) % 10})
    return PlanContext(made.denoiser, DIT.costs(made.denoiser, DIT.sites(made.denoiser)), SAMPLER, {}, studio)


SAMPLER = Sampler("ddim", SD_SCHEDULER, 8)


def test_the_lowest_threshold_tried_that_prunes_enough_is_taken(context):
    (search,) = prepares(Params(0.5, LEARN))
    steps = list(search.steps(context, None))
    tried = [tuple(step.shown.values()) for step in steps]
    enough = {threshold: pruned for threshold, pruned in tried if pruned >= 0.5}
    result = json.loads(json.dumps(steps[-1].result([step.shown for step in steps])))
    assert result["threshold"] == min(enough) and result["pruned"] == enough[min(enough)]
    assert len(tried) - next(i for i, (_, pruned) in enumerate(tried) if pruned >= 0.5) - 1 == LEARN.rounds
    gaps = np.diff(sorted(threshold for threshold, _ in tried))
    assert gaps.min() < min(enough) / 4  # it came close

    plan = method("first_block_cache").plan(
        PlanContext(context.denoiser, context.costs, SAMPLER, {"ratio": 0.5}, TinyStudio({"thresholds": result}))
    )
    assert plan.policy.threshold == min(enough) and plan.costs.pruned_ratio(plan.schedule) >= 0.5


def test_a_search_goes_on_where_it_stopped(context):
    (search,) = prepares(Params(0.5, LEARN))
    steps = list(search.steps(context, None))
    state = steps[1].state()
    again = list(search.steps(context, State({}, json.loads(json.dumps(state.data)))))
    assert [dict(step.shown) for step in again] == [dict(step.shown) for step in steps[1:]]
    assert again[-1].result([]) == steps[-1].result([])


def test_what_no_threshold_reaches_and_what_is_no_transformer_is_said_in_a_line(context):
    (search,) = prepares(Params(0.999, LEARN))
    with pytest.raises(DipgoError, match="first_block_cache prunes 0.* of the MACs at most, at any threshold"):
        assert len(list(search.steps(context, None))) <= FURTHEST
    made = instance(SD15)
    unet = PlanContext(made.denoiser, SD15.costs(made.denoiser, SD15.sites(made.denoiser)), SAMPLER, {}, TinyStudio())
    with pytest.raises(DipgoError, match="first_block_cache is made for transformers"):
        next(iter(search.steps(unet, None)))
    for ratio, rounds in ((1.0, 4), (0.0, 4), (0.5, 0)):
        with pytest.raises(DipgoError, match="it must"):
            prepares(Params(ratio, Bisection(rounds=rounds)))


def test_the_polynomial_of_tea_cache_is_fitted_with_the_share_that_it_explains():
    inputs = np.linspace(0.01, 0.3, 40).reshape(2, 20)
    exact = 0.2 + 3 * inputs - 2 * inputs**2
    fitted = _polynomial(np.stack([inputs, exact], axis=-1))
    assert np.polyval(fitted["polynomial"], inputs) == pytest.approx(exact) and fitted["r2"] == pytest.approx(1)
    noise = np.random.default_rng(0).normal(size=inputs.shape)
    assert _polynomial(np.stack([inputs, noise], axis=-1))["r2"] < 0.5


def test_a_calibration_goes_on_where_it_stopped(context):
    calibration, search = method("tea_cache").prepares({"ratio": 0.4, "learn": {"pictures": 3}})
    steps = list(calibration.steps(context, None))
    state = State({}, json.loads(json.dumps(steps[0].state().data)))
    again = list(calibration.steps(context, state))
    assert len(steps) == len(again) == 3 and again[-1].result([]) == steps[-1].result([])
    assert search.needs == {"calibration": calibration}
    account = calibration.account(steps[-1].result([]))["polynomial"]
    assert len(account["polynomial"]) == 5 and 0 <= account["r2"] <= 1
