"""Learned forecasts: where they start, that they get better, and what they leave alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.torch
import torch

from dipgo import (
    Diffusion,
    DipgoError,
    Forecast,
    Inputs,
    LearnConfig,
    Sampler,
    Schedule,
    State,
    gated,
    initial_noise,
    learn_forecast,
    rollout,
    ruled,
    trace_graph,
)
from dipgo.families import DIT
from dipgo.forecast.learning import _moved, _moves, _Trial
from tests.conftest import GUIDANCE, SD_SCHEDULER
from tests.helpers.contract import instance

STEPS, KEPT = 12, [0, 4, 8]


@pytest.fixture(scope="module")
def whole_call(tiny):
    return trace_graph(tiny.denoiser, [""], tiny.probe)


def learned(tiny, graph, kept=KEPT, *, sampler="ddim", guidance=GUIDANCE, **settings):
    sampler = tiny.sampler(sampler, STEPS)
    schedule = Schedule.skip_calls(graph.sites, sampler.calls, kept)
    branches = slice(None) if guidance > 1 else slice(len(tiny.noise), None)
    conditioning = {name: value[branches] for name, value in tiny.conditioning.items()}
    pictures = Inputs(tiny.noise, conditioning, tiny.seeds)
    return list(
        learn_forecast(LearnConfig(**settings), Diffusion(tiny.denoiser, sampler, guidance), graph, schedule, pictures)
    )


def error(tiny, graph, schedule: Schedule, noise: torch.Tensor, sampler="ddim") -> float:
    """Mean squared error of the final latents to the dense run's."""
    found = []
    for gates in (schedule, Schedule.dense(graph.sites, schedule.calls)):
        with torch.no_grad(), gated(tiny.denoiser, graph, gates):
            found.append(rollout(tiny.diffusion(tiny.sampler(sampler, STEPS)), Inputs(noise, tiny.conditioning)))
    return float((found[0] - found[1]).square().mean())


@pytest.mark.parametrize("order", [0, 1])
def test_it_starts_as_holding_or_as_a_linear_forecast_exactly(tiny, whole_call, order):
    start, *_ = learned(tiny, whole_call, order=order, rounds=1)
    hold = Schedule.skip_calls(whole_call.sites, STEPS, KEPT)
    rule = Forecast(tiny.sampler("ddim", STEPS).noise_ratios, order)
    assert start.round == 0
    assert start.schedule.digest == tiny.sampler("ddim", STEPS).stamped(ruled(rule, whole_call, hold)).digest


@pytest.mark.parametrize("sampler", ["ddim", "plms", "dpm"])
def test_every_round_is_better_also_on_noise_that_it_did_not_see(tiny, whole_call, sampler):
    rounds = learned(tiny, whole_call, sampler=sampler, rounds=3)
    losses = [state.loss for state in rounds]
    assert len(losses) > 1 and losses == sorted(losses, reverse=True)
    unseen = initial_noise([7, 8], (4, 8, 8))
    first, last = (error(tiny, whole_call, rounds[i].schedule, unseen, sampler) for i in (0, -1))
    assert last < 0.5 * first


def test_as_many_calls_are_computed_and_without_shifts_the_same_ones(tiny, whole_call):
    last = learned(tiny, whole_call, rounds=3)[-1].schedule
    assert (~last.reuse).sum() == len(KEPT) and not last.reuse[0].any()
    still = learned(tiny, whole_call, rounds=2, shift=0)[-1].schedule
    assert np.flatnonzero(~still.reuse).tolist() == KEPT
    assert still.coefficients.shape[2] == 3


def test_blocks_learn_coefficients_too(tiny):
    reuse = np.zeros((STEPS, len(tiny.graph.sites)), dtype=bool)
    reuse[1::2, 3:] = True
    sampler = tiny.sampler("ddim", STEPS)
    pictures = tiny.inputs
    schedule = Schedule(tiny.graph.sites, reuse)
    config = LearnConfig(rounds=1, memory=2, order=0)
    rounds = list(learn_forecast(config, tiny.diffusion(sampler), tiny.graph, schedule, pictures))
    assert rounds[-1].loss < rounds[0].loss


def test_each_guidance_branch_learns_coefficients_of_its_own(tiny, whole_call):
    guided = learned(tiny, whole_call, rounds=1, shift=0)[-1]
    assert guided.schedule.coefficients.shape[3] == 2
    alone = learned(tiny, whole_call, rounds=1, shift=0, guidance=1.0)[-1]
    assert alone.schedule.coefficients.ndim == 3


def test_neighbouring_gaps_share_their_change_where_there_are_more_than_groups(tiny, whole_call):
    kept = range(0, STEPS, 2)
    start, last = learned(tiny, whole_call, kept, groups=2, rounds=1, shift=0, order=0)
    assert last.loss < start.loss
    changes = [last.schedule.coefficients[call, 0] for call in range(1, STEPS, 2)]
    assert all((change == changes[0]).all() for change in changes[:3])
    assert all((change == changes[3]).all() for change in changes[3:])
    assert (changes[0] != changes[3]).any()


def computed(reuse: np.ndarray) -> list[int]:
    return np.flatnonzero(~reuse[:, 0]).tolist()


def test_moves_keep_the_first_call_and_pass_no_other(whole_call):
    reuse = np.array([0, 1, 0, 0, 1, 1], dtype=bool)[:, None]
    apart = _Trial(reuse, np.zeros((3, 1, 1, 1)))
    found = [_moved(whole_call, apart, move) for move in _moves(apart, 2)]
    assert [computed(state.reuse) for state in found if state] == [[0, 1, 3], [0, 2, 4], [0, 2, 5]]
    grouped = _Trial(reuse, np.zeros((1, 1, 1, 1)))  # which moves them together
    found = [_moved(whole_call, grouped, move) for move in _moves(grouped, 2)]
    assert [computed(state.reuse) for state in found if state] == [[0, 1, 2], [0, 3, 4], [0, 4, 5]]


def test_bad_settings_are_named(tiny, whole_call):
    with pytest.raises(DipgoError, match=r"learn.rounds is -1"):
        LearnConfig(rounds=-1)
    with pytest.raises(DipgoError, match=r"learn.memory is 1; it must be at least 2"):
        LearnConfig(memory=1)
    with pytest.raises(DipgoError, match="nothing to learn"):
        learned(tiny, whole_call, range(STEPS))


@pytest.mark.parametrize("stop", [0, 1, 2])
@pytest.mark.parametrize("settings", [{}, {"shift": 0, "order": 0}, {"groups": 2, "memory": 2}])
def test_a_learning_that_goes_on_after_a_stop_ends_bit_for_bit_alike(tiny, whole_call, settings, stop):
    config, sampler = LearnConfig(**{"rounds": 3, **settings}), tiny.sampler("ddim", 6)
    start = Schedule.skip_calls(("",), 6, [0, 3])

    def rounds(resume=None):
        return learn_forecast(config, tiny.diffusion(sampler), whole_call, start, tiny.inputs, resume)

    whole = list(rounds())
    assert len(whole) > stop
    state = whole[stop].state()
    tensors = safetensors.torch.load(safetensors.torch.save(dict(state.tensors)))
    again = list(rounds(State(tensors, json.loads(json.dumps(state.data)))))
    assert [(r.round, r.loss, r.schedule.digest) for r in again] == [
        (r.round, r.loss, r.schedule.digest) for r in whole[stop:]
    ]


def test_what_is_learned_carries_its_samplers_timesteps(tiny, whole_call):
    start = learned(tiny, whole_call, sampler="plms", rounds=0)[0]
    assert start.schedule.timesteps.tolist() == tiny.sampler("plms", STEPS).timesteps.tolist()
    with pytest.raises(DipgoError, match="made for another sampler"):
        tiny.sampler("ddim", STEPS + 1).check(start.schedule)


def test_a_state_of_other_settings_is_refused(tiny, whole_call):
    state = learned(tiny, whole_call, rounds=0)[0].state()
    schedule = Schedule.skip_calls(("",), STEPS, KEPT)
    for name, value in (("memory", 4), ("shift", 1), ("rounds", 5)):
        config = LearnConfig(**{"rounds": 0, name: value})
        with pytest.raises(DipgoError, match=f"made with {name} = "):
            diffusion = tiny.diffusion(tiny.sampler("ddim", STEPS))
            next(learn_forecast(config, diffusion, whole_call, schedule, tiny.inputs, state))


def test_at_zero_snr_the_way_out_is_named(tiny, whole_call):
    zero = {**SD_SCHEDULER, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    zero["prediction_type"] = "v_prediction"  # noise cannot be predicted where there is nothing else
    diffusion = tiny.diffusion(Sampler("ddim", zero, 6))
    start = Schedule.skip_calls(("",), 6, [0, 3])
    with pytest.raises(DipgoError, match="begins at zero SNR.*take order 0"):
        next(learn_forecast(LearnConfig(rounds=1), diffusion, whole_call, start, tiny.inputs))
    first, *_ = learn_forecast(LearnConfig(rounds=0, order=0), diffusion, whole_call, start, tiny.inputs)
    assert np.isfinite(first.loss)


def test_layers_within_blocks_learn_and_those_of_a_kind_share_their_changes():
    made = instance(DIT, "layer")
    sampler = Sampler("ddim", SD_SCHEDULER, 6)
    start = Schedule.skip_calls(made.graph.sites, 6, [0, 2, 4])
    pictures = Inputs(initial_noise([5, 6], (4, 8, 8)), made.conditioning)
    config = LearnConfig(memory=2, rounds=1, shift=0, groups=1, shared=True)
    rounds = list(learn_forecast(config, Diffusion(made.denoiser, sampler, 3.0), made.graph, start, pictures))
    first, last = (learned.schedule.coefficients for learned in rounds)
    if first.ndim == 3:  # both branches are alike until they have learned
        first = first[..., None]
    changes = (last - first).reshape(6, -1, 2, *last.shape[2:])  # blocks, and the two kinds of layers
    assert rounds[1].loss < rounds[0].loss
    np.testing.assert_allclose(changes, np.broadcast_to(changes[:, :1], changes.shape), atol=1e-6)
    assert np.abs(changes[1, 0, 0] - changes[1, 0, 1]).max() > 1e-4
