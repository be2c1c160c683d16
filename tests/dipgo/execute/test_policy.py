"""Policies: what they decide is a schedule that `gated` repeats, and the real caches give the same latents and MACs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FirstBlockCacheConfig, MagCacheConfig
from diffusers.hooks import apply_first_block_cache, apply_mag_cache
from diffusers.models import CacheMixin

from baselines import PlanContext
from baselines.db_cache import Calibrated
from baselines.first_block_cache import FirstBlocks
from baselines.mag_cache import Magnitudes, Params, prepares
from baselines.tea_cache import ModulatedInput, attended
from baselines.threshold import Bisection
from dipgo import (
    Diffusion,
    DipgoError,
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
from tests.helpers.studio import TinyStudio

CALLS, GUIDANCE = 8, 3.0
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
        latents = rollout(Diffusion(made.denoiser, SAMPLER, GUIDANCE), inputs(made, pictures))
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


RATIOS = (1.0, 1.05, 1.02, 0.97, 1.04, 1.01, 0.98, 0.95)
POLICIES = {
    "first block": FirstBlocks,
    "two blocks": partial(FirstBlocks, lead=2, warmup=3),
    "linear": partial(FirstBlocks, rule=Calibrated(np.arange(CALLS))),
    "magnitudes": partial(Magnitudes, RATIOS),
    "modulated input": partial(ModulatedInput, (1.0, 0.0), calls=CALLS),
}


@pytest.mark.parametrize("name", POLICIES)
def test_what_was_decided_gives_the_same_latents_and_macs_whatever_was_drawn_before(made, name):
    policy = middling(made, POLICIES[name])
    latents, schedules = decide(made, policy, (0,), (1,))
    others, again = decide(made, policy, (1,), (0,))
    assert all(torch.equal(*pair) for pair in zip(latents, reversed(others), strict=True))
    assert [schedule.digest for schedule in schedules] == [schedule.digest for schedule in reversed(again)]

    drawn, macs = draw(made, gated(made.denoiser, made.graph, schedules[0]))
    assert torch.equal(latents[0], drawn)
    assert relative(drawn, draw(made)[0]) > 10 * CLOSE  # it was no dense run
    costs = count_costs(made.denoiser, made.graph, made.probe).full
    assert 2 * costs.per_call(made.graph.execute(schedules[0])).sum() == pytest.approx(macs, rel=1e-4)


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


def test_diffusers_mag_cache_is_this_policy(made):
    policy = middling(made, POLICIES["magnitudes"])
    with RanMacs() as ran:
        (latents,), _ = decide(made, policy)
    stock = deepcopy(made.denoiser)
    apply_mag_cache(stock, MagCacheConfig(policy.threshold, num_inference_steps=CALLS, mag_ratios=list(RATIOS)))
    real, macs = draw(replace(made, denoiser=stock))
    assert relative(latents, real) < CLOSE and ran.total == pytest.approx(macs, rel=1e-4)


def test_diffusers_measures_the_ratios_of_mag_cache_as_our_calibration_does(made, capsys):
    picture = inputs(made, (0,))
    studio = TinyStudio(conditioning=lambda rows: picture.conditioning)
    studio.guidance = GUIDANCE
    studio.pictures = lambda captions, seeds: picture
    costs = count_costs(made.denoiser, made.graph, made.probe)
    calibration = prepares(Params(0.5, learn=Bisection(pictures=1)))[0]
    ours = calibration.make(PlanContext(made.denoiser, costs, SAMPLER, {}, studio))["ratios"]
    stock = deepcopy(made.denoiser)
    apply_mag_cache(stock, MagCacheConfig(num_inference_steps=CALLS, calibrate=True))
    draw(replace(made, denoiser=stock))
    (printed,) = re.findall(r"^\[[\d., ]+\]$", capsys.readouterr().out, re.M)
    assert ours == pytest.approx(json.loads(printed), rel=1e-5)


def test_a_block_runs_as_far_as_its_attention_and_no_further(made):
    """The look that TeaCache takes is what the attention takes in when the block runs."""
    block, seen = made.denoiser.transformer_blocks[0], []
    handles = [
        block.register_forward_pre_hook(lambda block, *given: seen.append(attended(block, *given)), with_kwargs=True),
        block.attn1.register_forward_pre_hook(lambda attention, args: seen.append(args[0])),
    ]
    with torch.no_grad():
        rollout(Diffusion(made.denoiser, Sampler("ddim", SD_SCHEDULER, 1), GUIDANCE), inputs(made, (0,)))
    for handle in handles:
        handle.remove()
    # The attention's own hook is called in the look as well, and so comes first.
    assert len(seen) == 3 and torch.equal(seen[1], seen[2])


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
