"""Learned forecasts: where they start, that they get better, and what they leave alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dipgo import (
    DipgoError,
    Forecast,
    LearnConfig,
    Pictures,
    Schedule,
    gated,
    initial_noise,
    learn_forecast,
    rollout,
    ruled,
    trace_graph,
)
from dipgo.learning import _moves
from tests.conftest import GUIDANCE

STEPS, KEPT = 12, [0, 4, 8]


@pytest.fixture(scope="module")
def whole_call(tiny):
    return trace_graph(tiny.denoiser, [""], tiny.probe)


def learned(tiny, graph, kept=KEPT, *, sampler="ddim", **settings):
    sampler = tiny.sampler(sampler, STEPS)
    schedule = Schedule.skip_calls(graph.sites, sampler.calls, kept)
    pictures = Pictures(tiny.noise, tiny.conditioning, tiny.seeds)
    return list(learn_forecast(LearnConfig(**settings), tiny.denoiser, graph, schedule, sampler, pictures, GUIDANCE))


def error(tiny, graph, schedule: Schedule, noise: torch.Tensor, sampler="ddim") -> float:
    """Mean squared error of the final latents to the dense run's."""
    found = []
    for gates in (schedule, Schedule.dense(graph.sites, schedule.calls)):
        with torch.no_grad(), gated(tiny.denoiser, graph, gates):
            found.append(rollout(tiny.denoiser, tiny.sampler(sampler, STEPS), noise, tiny.conditioning, GUIDANCE))
    return float((found[0] - found[1]).square().mean())


@pytest.mark.parametrize("order", [0, 1])
def test_it_starts_as_holding_or_as_a_linear_forecast_exactly(tiny, whole_call, order):
    start, *_ = learned(tiny, whole_call, order=order, rounds=1)
    hold = Schedule.skip_calls(whole_call.sites, STEPS, KEPT)
    rule = Forecast(tiny.sampler("ddim", STEPS).noise_ratios, order)
    assert start.round == 0
    assert start.schedule.digest == ruled(rule, whole_call, hold).digest


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
    pictures = Pictures(tiny.noise, tiny.conditioning, tiny.seeds)
    schedule = Schedule(tiny.graph.sites, reuse)
    config = LearnConfig(rounds=1, memory=2, order=0)
    rounds = list(learn_forecast(config, tiny.denoiser, tiny.graph, schedule, sampler, pictures, GUIDANCE))
    assert rounds[-1].loss < rounds[0].loss


def test_moves_keep_the_first_call_and_pass_no_other():
    reuse = np.array([0, 1, 0, 0, 1, 1], dtype=bool)[:, None]
    assert _moves(reuse, 1) == [(2, 1), (3, 4)]
    assert _moves(reuse, 2) == [(2, 1), (3, 4), (3, 5)]


def test_bad_settings_are_named(tiny, whole_call):
    with pytest.raises(DipgoError, match=r"learn.rounds is -1"):
        LearnConfig(rounds=-1)
    with pytest.raises(DipgoError, match=r"learn.memory is 1; it must be at least 2"):
        LearnConfig(memory=1)
    with pytest.raises(DipgoError, match="nothing to learn"):
        learned(tiny, whole_call, range(STEPS))
