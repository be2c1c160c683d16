"""Schedules side by side in one batch: the numbers of one by one, and less work."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dipgo import (
    FAMILIES,
    Diffusion,
    DipgoError,
    Inputs,
    PartialTrajectory,
    Sampler,
    Schedule,
    gated_together,
    initial_noise,
    rollout,
)
from dipgo.execute.lockstep import leaders
from tests.conftest import SD_SCHEDULER
from tests.helpers.contract import CALLS, PICTURES, UNITS, Instance, instance, relative


@pytest.fixture(scope="module", params=[(f, u) for f in FAMILIES for u in UNITS], ids=lambda p: f"{p[0].name}-{p[1]}")
def made(request) -> Instance:
    return instance(*request.param)


def together(made: Instance, schedules: list[Schedule], sampler: str = "ddim") -> torch.Tensor:
    """Latents [schedules, pictures, ...] of one batch."""
    count = len(schedules)
    noise = initial_noise([5, 6], (4, 8, 8)).repeat_interleave(count, 0)

    def rows(value):
        if isinstance(value, dict):
            return {name: rows(item) for name, item in value.items()}
        return None if value is None else value.repeat_interleave(count, 0)

    conditioning = rows(dict(made.conditioning))
    with gated_together(made.denoiser, made.graph, schedules):
        latents = rollout(
            Diffusion(made.denoiser, Sampler(sampler, SD_SCHEDULER, CALLS), 3.0), Inputs(noise, conditioning)
        )
    return latents.unflatten(0, (-1, count)).transpose(0, 1)


def some(made: Instance) -> list[Schedule]:
    """Schedules that differ early, late and nowhere, with calls in which nothing runs."""
    skipping = Schedule.skip_calls(made.graph.sites, CALLS, [0, 3])
    return [made.reuse(1), made.reuse(2, 0.8), dense_at(made, CALLS - 1), skipping, made.reuse(1)]


def dense_at(made: Instance, call: int) -> Schedule:
    """A schedule with all sites computed in one call."""
    reuse = made.reuse(1).reuse.copy()
    reuse[call] = False
    return Schedule(made.graph.sites, reuse)


@torch.no_grad()
def test_together_equals_one_by_one(made):
    schedules = some(made)
    found = together(made, schedules)
    for schedule, latents in zip(schedules, found, strict=True):
        assert relative(latents, made.run(schedule)) < 1e-5
    assert relative(found[0], found[1]) > 1e-4


@torch.no_grad()
def test_what_schedules_have_in_common_runs_once(made):
    totals = []
    one, last, second = made.reuse(1), dense_at(made, CALLS - 1), dense_at(made, 1)
    for schedules in ([one], [last], [second], [one] * 3, [one, last], [one, second]):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            together(made, schedules)
        totals.append(counter.get_total_flops())
    alone, alone_last, alone_second, thrice, with_last, with_second = totals
    assert thrice == alone
    assert max(alone, alone_last) <= with_last < alone + alone_last
    assert max(alone, alone_second) < with_second < alone + alone_second


@torch.no_grad()
def test_multistep_samplers_run_together():
    made = instance(FAMILIES[0])
    for sampler in ("dpm", "ddim"):
        found = together(made, [made.reuse(1), made.reuse(2)], sampler)
        assert found.shape[:2] == (2, PICTURES) and torch.isfinite(found).all()


def test_a_leader_is_the_first_with_the_same_calls_so_far():
    computed = np.array([[[1], [0], [1]], [[1], [0], [0]], [[1], [1], [1]], [[1], [0], [1]]], dtype=bool)
    assert leaders(computed, np.zeros((*computed.shape, 1))).T.tolist() == [[0, 0, 0, 0], [0, 0, 2, 0], [0, 1, 2, 0]]


@torch.no_grad()
def test_what_cannot_run_together_is_refused():
    made = instance(FAMILIES[0])
    with pytest.raises(DipgoError, match="at least one"):
        together(made, [])
    with pytest.raises(DipgoError, match="one number of calls"):
        together(made, [made.reuse(1), Schedule.dense(made.graph.sites, 3)])
    with torch.enable_grad(), pytest.raises(DipgoError, match="without gradients"):
        together(made, [made.reuse(1)])
    with pytest.raises(DipgoError, match="5 rows"), gated_together(made.denoiser, made.graph, [made.reuse(1)] * 2):
        made.denoiser(torch.zeros(5, 4, 8, 8), timestep=torch.zeros(5), **made.conditioning)
    with pytest.raises(PartialTrajectory), gated_together(made.denoiser, made.graph, [made.reuse(1)]):
        made.denoiser(torch.zeros(4, 4, 8, 8), timestep=torch.zeros(4), **made.conditioning)
    assert relative(together(made, [made.reuse(1)])[0], made.run(made.reuse(1))) < 1e-5
