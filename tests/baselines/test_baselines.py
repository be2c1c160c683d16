from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from DeepCache import DeepCacheSDHelper
from diffusers import DiTTransformer2DModel, UNet2DConditionModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from baselines import METHODS, Plan, PlanContext, method
from dipgo import (
    Diffusion,
    DipgoError,
    Inputs,
    Sampler,
    Schedule,
    UnreachableRatio,
    count_costs,
    gated,
    initial_noise,
    rollout,
    trace_graph,
)
from dipgo.families import DIT
from tests.conftest import GUIDANCE, SD_SCHEDULER
from tests.helpers.studio import TinyStudio


@pytest.fixture
def context(tiny, tiny_costs):
    def make(name: str = "ddim", steps: int = 10, scores=None, plans=None, **params) -> PlanContext:
        studio = TinyStudio({"pruners": {"scores": scores}}, plans)
        return PlanContext(tiny.denoiser, tiny_costs, tiny.sampler(name, steps), params, studio)

    return make


def run(tiny, plan: Plan) -> torch.Tensor:
    with torch.no_grad(), gated(tiny.denoiser, plan.costs.graph, plan.schedule):
        return rollout(tiny.diffusion(plan.sampler), tiny.inputs)


def deepcache_package(tiny, sampler, interval: int, branch: int) -> torch.Tensor:
    class Pipe:
        unet, scheduler = tiny.denoiser, sampler.scheduler()

    helper = DeepCacheSDHelper(pipe=Pipe())
    helper.set_params(cache_interval=interval, cache_branch_id=branch)
    helper.enable()

    def denoiser(sample, timestep, **kwargs):  # the package looks for one timestep, by position
        return tiny.denoiser(sample, timestep[0], **kwargs)

    try:
        with torch.no_grad():
            return rollout(Diffusion(denoiser, sampler, GUIDANCE), tiny.inputs)
    finally:
        helper.disable()


@pytest.mark.parametrize(("interval", "branch"), [(2, 0), (5, 0), (3, 1), (3, 2), (4, 3), (3, 4), (3, 7)])
def test_deepcache_as_a_schedule_equals_the_deepcache_package(tiny, context, interval, branch):
    made = context(interval=interval, branch=branch)
    plan = method("deepcache").plan(made)
    package = deepcache_package(tiny, made.sampler, interval, branch)
    torch.testing.assert_close(run(tiny, plan), package, rtol=1e-5, atol=1e-6)
    assert (package - run(tiny, made.dense())).abs().max() > 1e-3


def test_deepcache_keeps_the_calls_between_cheap(tiny, context):
    made = context(interval=5, branch=0)
    plan = method("deepcache").plan(made)
    spent = plan.costs.full.per_call(plan.costs.graph.execute(plan.schedule))
    assert spent[0] == spent[5] == pytest.approx(tiny_dense(plan)) and (np.delete(spent, [0, 5]) < spent[0] / 2).all()


def tiny_dense(plan: Plan) -> float:
    return plan.costs.full.dense


def test_dense_reuses_nothing(context):
    assert not method("dense").plan(context()).schedule.reuse.any()


@pytest.mark.parametrize(("params", "kept"), [({"interval": 2}, [0, 2, 4, 6, 8]), ({"calls": 3}, [0, 3, 6])])
def test_step_skip_holds_between_evenly_spread_calls(context, params, kept):
    plan = method("step_skip").plan(context(mode="hold", **params))
    assert np.flatnonzero(~plan.schedule.reuse.any(1)).tolist() == kept


@pytest.mark.parametrize("order", [1, 2])
def test_step_skip_forecasts_between_evenly_spread_calls(tiny, context, order):
    held = method("step_skip").plan(context(steps=20, mode="hold", calls=8))
    plan = method("step_skip").plan(context(steps=20, mode="forecast", calls=8, order=order))
    assert plan.schedule.depth == order + 1
    assert (plan.schedule.reuse == held.schedule.reuse).all()
    costs = [made.costs.full.per_call(made.costs.graph.execute(made.schedule)) for made in (held, plan)]
    assert (costs[0] == costs[1]).all()
    assert not torch.equal(run(tiny, plan), run(tiny, held))


def test_a_learned_forecast_starts_from_calls_that_leave_half_a_gap_at_the_end(tiny, context):
    made = context(steps=50, calls=5, learn={"rounds": 1})
    (forecast,) = method("learned_forecast").prepares(made.params)
    start = forecast.start(made)
    assert np.flatnonzero(~start.schedule.reuse).tolist() == [0, 11, 22, 34, 45]
    made.studio.results["forecasts"] = {"schedule": start.schedule.to_dict()}
    assert method("learned_forecast").plan(made).schedule.digest == start.schedule.digest
    assert made.studio.lessons[0].settings.rounds == 1


def test_step_skip_omit_leaves_calls_of_the_grid_out(context):
    made = context("plms", 50, mode="omit", interval=2)
    plan = method("step_skip").plan(made)
    assert plan.sampler.timesteps.tolist() == made.sampler.timesteps[::2].tolist()
    assert not plan.schedule.reuse.any()


def test_dipgo_meets_its_ratio_from_the_trained_scores(context, tiny_costs):
    scores = np.random.default_rng(0).random((50, 9))
    plan = method("dipgo").plan(context(steps=50, scores=scores, ratio=0.8))
    assert abs(tiny_costs.pruned_ratio(plan.schedule) - 0.8) < 0.0125


def test_kept_timesteps_are_those_where_the_other_run_spends_most(tiny, context, tiny_costs):
    reuse = np.ones((51, 9), dtype=bool)
    reuse[[0, 2, 7, 30]] = False  # call 2 is PLMS's second one at the timestep of call 1
    reuse[40, 8] = False  # a call that computes its last block only
    made = context("plms", 50)
    other = Plan(made.sampler, Schedule(tiny.graph.sites, reuse), tiny_costs)
    plans = [method("kept_timesteps").plan(context("plms", 50, of="x", calls=n, plans={"x": other})) for n in (3, 4, 5)]
    for plan, kept in zip(plans, ([0, 2, 7], [0, 2, 7, 30], [0, 2, 7, 30, 40]), strict=True):
        computed = plan.costs.graph.execute(plan.schedule).computed_calls
        assert plan.sampler.name == "ddim"
        assert plan.sampler.timesteps[computed].tolist() == made.sampler.timesteps[kept].tolist()


@pytest.mark.parametrize(
    ("name", "params", "says"),
    [
        ("step_skip", {}, "mode"),
        ("step_skip", {"mode": "hodl"}, "did you mean hold"),
        ("step_skip", {"mode": "hold", "interval": 0}, "interval is 0"),
        ("step_skip", {"mode": "hold", "calls": 99}, "calls=99"),
        ("step_skip", {"mode": "omit", "calls": 3}, "takes an interval"),
        ("step_skip", {"mode": "forecast", "calls": 3}, "'order'"),
        ("step_skip", {"mode": "hold", "calls": 3, "order": 1}, "'order'"),
        ("step_skip", {"mode": "hold", "calls": 3, "interval": 2}, "one of them"),
        ("step_skip", {"mode": "hold", "interval": 2.0}, "interval is 2.0; it must be an integer"),
        ("step_skip", {"mode": "forecast", "calls": 3, "order": 3}, "order is 3"),
        ("step_search", {}, "'calls'"),
        ("step_search", {"calls": 3, "search": {"evaluation": 3}}, "did you mean evaluations"),
        ("learned_forecast", {"calls": 99}, "calls=99"),
        ("learned_forecast", {"calls": 3, "learn": {"pictures": 99}}, "learn.pictures is 99"),
        ("learned_forecast", {"calls": 3, "learn": {"picture": 3}}, "did you mean pictures"),
        ("learned_forecast", {"calls": 3, "learn": {"memory": 0}}, "learn.memory is 0"),
        ("deepcache", {"interval": 0, "branch": 0}, "interval is 0"),
        ("deepcache", {"interval": 5, "branch": 12}, "branch 12"),
        ("dipgo", {"ratio": 0.0, "scores": np.ones((10, 9))}, "between 0 and 1"),
        ("dipgo", {"ratio": ".8"}, "dipgo.ratio is '.8'; it must be a finite number"),
        ("dipgo", {"ratio": 0.5, "train": {"step": 2}}, "dipgo.train: unknown parameter 'step'; did you mean steps"),
        ("deepcache", {"intervall": 5, "branch": 0}, "unknown parameter 'intervall'; did you mean interval"),
        ("kept_timesteps", {}, "'of'"),
    ],
)
def test_bad_parameters_are_named(context, name, params, says):
    with pytest.raises(DipgoError, match=says):
        method(name).plan(context(**params))


def test_an_unreachable_ratio_is_refused(context):
    with pytest.raises(UnreachableRatio):
        method("dipgo").plan(context(scores=np.random.default_rng(0).random((10, 9)), ratio=0.95))


def test_an_unknown_method_is_named():
    with pytest.raises(DipgoError, match="did you mean deepcache"):
        method("deepcach")
    assert "dipgo" in METHODS


def test_a_schedule_for_another_step_count_or_family_is_refused(tiny, context):
    plan = context(steps=10).dense()
    with pytest.raises(DipgoError, match="10 calls, but ddim at 5 steps makes 5"):
        replace(plan, sampler=tiny.sampler("ddim", 5))
    with pytest.raises(DipgoError, match="another denoiser"):
        replace(plan, schedule=Schedule.dense(("transformer_blocks.0",), 10))


@pytest.fixture(scope="module")
def dit():
    """28 blocks as in the published DiT, wide enough that what lies outside of them costs next to nothing."""
    torch.manual_seed(0)
    denoiser = DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=28, sample_size=16
    ).eval()
    graph = trace_graph(denoiser, DIT.blocks(denoiser), DIT.probe(denoiser))
    return denoiser, count_costs(denoiser, graph, DIT.probe(denoiser), DIT.macs)


@torch.no_grad()
@pytest.mark.parametrize(("interval", "blocks", "ratio"), [(2, 2, 0.5357), (5, 1, 0.2286)])
def test_deepcache_on_dit_costs_what_the_paper_charges(dit, interval, blocks, ratio):
    denoiser, costs = dit
    sampler = Sampler("ddim", SD_SCHEDULER, 10)
    params = {"interval": interval, "blocks": blocks}
    context = PlanContext(denoiser, costs, sampler, params)

    def executed(plan: Plan) -> int:
        inputs = Inputs(initial_noise([0], (4, 16, 16)), {"class_labels": torch.tensor([1000, 1])})
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            with gated(denoiser, plan.costs.graph, plan.schedule):
                rollout(Diffusion(denoiser, plan.sampler, 4.0), inputs)
        return counter.get_total_flops()

    plan = method("deepcache").plan(context)
    assert 1 - costs.pruned_ratio(plan.schedule) == pytest.approx(ratio, abs=0.002)
    assert executed(plan) / executed(context.dense()) == pytest.approx(1 - costs.pruned_ratio(plan.schedule), abs=1e-9)


def test_deepcache_on_dit_refuses_to_run_all_or_no_blocks(dit):
    denoiser, costs = dit
    for blocks in (0, 28):
        params = {"interval": 2, "blocks": blocks}
        with pytest.raises(DipgoError, match=f"blocks is {blocks}"):
            method("deepcache").plan(PlanContext(denoiser, costs, Sampler("ddim", SD_SCHEDULER, 4), params))


def test_dipgo_gates_deltas_where_the_training_says_so(dit):
    denoiser, costs = dit
    scores = np.random.default_rng(0).random((20, 28))
    params = {"ratio": 0.6, "train": {"unit": "delta"}}
    sampler = Sampler("ddim", SD_SCHEDULER, 20)
    plan = method("dipgo").plan(
        PlanContext(denoiser, costs, sampler, params, TinyStudio({"pruners": {"scores": scores}}))
    )
    assert all(site.endswith(":delta") for site in plan.schedule.sites)
    assert abs(plan.costs.pruned_ratio(plan.schedule) - 0.6) < 0.0125
    assert not plan.costs.graph.execute(plan.schedule).dead[1:].any()


@torch.no_grad()
def test_deepcache_takes_a_unet_without_a_mid_block(tiny):
    config = {name: value for name, value in tiny.denoiser.config.items() if not name.startswith("_")}
    unet = UNet2DConditionModel(**{**config, "mid_block_type": None}).eval()
    graph = trace_graph(unet, tiny.family.blocks(unet), tiny.probe)
    costs = count_costs(unet, graph, tiny.probe)
    params = {"interval": 3, "branch": 1}
    plan = method("deepcache").plan(PlanContext(unet, costs, tiny.sampler("ddim", 6), params))
    with gated(unet, plan.costs.graph, plan.schedule) as trace:
        rollout(Diffusion(unet, plan.sampler, GUIDANCE), tiny.inputs)
    assert trace.ran.all() and 0.3 < plan.costs.pruned_ratio(plan.schedule) < 0.67
