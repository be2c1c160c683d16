"""Policies: what they decide is a schedule that `gated` repeats, and the real caches give the same latents and MACs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FirstBlockCacheConfig
from diffusers.hooks import apply_first_block_cache
from diffusers.models import CacheMixin

from baselines.first_block_cache import FirstBlocks
from dipgo import (
    Diffusion,
    DipgoError,
    Forecast,
    Inputs,
    Policy,
    Question,
    Sampler,
    Schedule,
    count_costs,
    deciding,
    gated,
    initial_noise,
    rollout,
)
from dipgo.costs import RanMacs
from dipgo.families import DIT, PIXART
from tests.conftest import SD_SCHEDULER
from tests.helpers.contract import Instance, instance, relative

CALLS = 8
SAMPLER = Sampler("ddim", SD_SCHEDULER, CALLS)
CLOSE = 1e-5  # the latents; a cache that decides otherwise is 1e-4 away at least


@pytest.fixture(scope="module", params=(DIT, PIXART), ids=lambda family: family.name)
def made(request) -> Instance:
    return instance(request.param, "delta")


def inputs(made: Instance, pictures: tuple[int, ...]) -> Inputs:
    """The first pictures' noise and conditioning, the unconditional rows first."""

    def rows(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: rows(item) for name, item in value.items()}
        return None if value is None else value[[*pictures, *(2 + picture for picture in pictures)]]

    noise = initial_noise([5, 6], (4, 8, 8))[list(pictures)]
    return Inputs(noise, rows(made.conditioning))


@torch.no_grad()
def draw(made: Instance, context: Any = None, pictures: tuple[int, ...] = (0,)) -> tuple[torch.Tensor, float]:
    """Latents, and the MACs that really ran."""
    with RanMacs() as ran, context or nullcontext():
        latents = rollout(Diffusion(made.denoiser, SAMPLER, 3.0), inputs(made, pictures))
    return latents, ran.total


def dense(made: Instance) -> Schedule:
    return SAMPLER.stamped(Schedule.dense(made.graph.sites, CALLS))


def decide(made: Instance, policy: Policy, *batches: tuple[int, ...]) -> tuple[list[torch.Tensor], list[Schedule]]:
    """The latents of some batches of pictures, drawn one after the other in one context, and their schedules."""
    with deciding(made.denoiser, made.graph, dense(made), policy) as schedules:
        latents = [draw(made, pictures=pictures)[0] for pictures in batches or ((0,),)]
    return latents, schedules


def middling(made: Instance, policy_of: Callable[[float], Policy]) -> Policy:
    """The policy of a threshold at which some of the calls that could be reused are, and some are not."""
    low, high = 1e-3, 10.0
    for _ in range(12):
        threshold = (low * high) ** 0.5
        reused = decide(made, policy_of(threshold))[1][0].reuse[:, -1].mean()
        if 0.2 < reused < 0.8:
            return policy_of(threshold)
        low, high = (threshold, high) if reused <= 0.2 else (low, threshold)
    raise AssertionError("no threshold reuses some calls and not all")


POLICIES = {
    "first block": FirstBlocks,
    "two blocks": partial(FirstBlocks, lead=2, warmup=3),
    "linear": partial(FirstBlocks, rule=Forecast(np.arange(CALLS), 1)),
}


@pytest.mark.parametrize("name", POLICIES)
def test_what_was_decided_gives_the_same_latents_and_macs(made, name):
    policy = middling(made, POLICIES[name])
    with RanMacs() as ran:
        (latents,), (schedule,) = decide(made, policy)
    again, macs = draw(made, gated(made.denoiser, made.graph, schedule))
    assert torch.equal(latents, again) and ran.total == macs
    assert relative(latents, draw(made)[0]) > 10 * CLOSE  # it was no dense run
    costs = count_costs(made.denoiser, made.graph, made.probe).full
    assert 2 * costs.per_call(made.graph.execute(schedule)).sum() == pytest.approx(macs, rel=1e-4)


@pytest.mark.parametrize("name", POLICIES)
def test_a_picture_drawn_after_another_is_the_one_drawn_first(made, name):
    policy = middling(made, POLICIES[name])
    first = decide(made, policy, (0,), (1,))
    last = decide(made, policy, (1,), (0,))
    for latents, others in zip(first[0], reversed(last[0]), strict=True):
        assert torch.equal(latents, others)
    assert [s.digest for s in first[1]] == [s.digest for s in reversed(last[1])]


@contextmanager
def first_block_cache(denoiser: Any, threshold: float) -> Iterator[None]:
    apply_first_block_cache(denoiser, FirstBlockCacheConfig(threshold))
    with CacheMixin.cache_context(denoiser, "picture"):  # DiT and PixArt are no `CacheMixin`, and pass none themselves
        yield


def test_diffusers_first_block_cache_is_this_policy(made):
    policy = middling(made, FirstBlocks)
    with RanMacs() as ran:
        (latents,), _ = decide(made, policy)
    stock = replace(made, denoiser=deepcopy(made.denoiser))
    real, macs = draw(stock, first_block_cache(stock.denoiser, policy.threshold))
    assert relative(latents, real) < CLOSE and ran.total == pytest.approx(macs, rel=1e-4)


class Watching(Policy):
    """Computes every call, and keeps what the first block adds."""

    lead = 1

    def __init__(self) -> None:
        self.changes: list[torch.Tensor] = []

    def begin(self) -> None:
        pass

    def computes(self, question: Question) -> bool:
        self.changes.append(question.stream - question.entered)
        return True


def test_the_criterion_is_averaged_over_a_batch(made):
    """Two pictures that part ways alone share one decision in a batch, so such rows are drawn at a batch of one."""
    watching = Watching()
    decide(made, watching, (0,), (1,))
    pairs = [watching.changes[start : start + 2] for start in (0, CALLS)]
    moved = [float((second - first).abs().mean() / first.abs().mean()) for first, second in pairs]
    policy = FirstBlocks(sum(moved) / 2)
    _, alone = decide(made, policy, (0,), (1,))
    _, (together,) = decide(made, policy, (0, 1))
    assert alone[0].reuse[1, -1] != alone[1].reuse[1, -1]
    assert {schedule.digest for schedule in alone} != {together.digest}


def test_a_policy_takes_deltas_and_no_more_leaders_than_there_are_blocks(made):
    for one, lead, says in ((instance(DIT), 1, "unit delta"), (made, 4, "4 blocks lead")):
        with pytest.raises(DipgoError, match=says):
            deciding(one.denoiser, one.graph, dense(one), FirstBlocks(0.1, lead=lead)).__enter__()
