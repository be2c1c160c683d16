"""TaylorSeer as a schedule beside the release in diffusers, on the same noise."""

from __future__ import annotations

import copy
import json
from contextlib import contextmanager
from functools import cache
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import CacheMixin, DiffusionPipeline
from diffusers.hooks import TaylorSeerCacheConfig, apply_taylorseer_cache

from baselines import Plan, PlanContext, method
from benchmarks import ROOT
from benchmarks.specs.suite import load_suite
from benchmarks.supply.zoo import ZOO
from dipgo import CostModel, Diffusion, Inputs, Sampler, family_of, gated, initial_noise, rollout
from dipgo.costs import RanMacs
from dipgo.families import DIT, PIXART, SD15
from dipgo.rules import Taylor
from tests.conftest import SD_SCHEDULER
from tests.helpers.contract import instance

CALLS = 10
HOOKED = {
    "dit": [r"transformer_blocks\.\d+\.(attn1|ff)"],
    "pixart": [r"transformer_blocks\.\d+\.(attn1|attn2|ff)"],
    # The last layer of a residual branch gives what the branch adds. Those before it run in the release, for nothing.
    "sd15": [r".*\.resnets\.\d+\.conv2", r".*\.attentions\.\d+\.proj_out"],
}


@pytest.fixture(scope="module", params=[DIT, PIXART, SD15], ids=lambda family: family.name)
def drawing(request):
    """A tiny denoiser and what draws two pictures with it, or with a copy, and counts the MACs."""
    family, made = request.param, instance(request.param)
    inputs = Inputs(initial_noise([5, 6], (4, 8, 8)), made.conditioning)

    @torch.no_grad()
    def draw(denoiser, sampler: Sampler) -> tuple[torch.Tensor, float]:
        with RanMacs() as ran:
            latents = rollout(Diffusion(denoiser, sampler, 3.0), inputs)
        return latents, ran.total

    return family, made.denoiser, draw


def planned(family, denoiser, **params) -> Plan:
    costs = family.costs(denoiser, family.sites(denoiser))
    return method("taylorseer").plan(PlanContext(denoiser, costs, Sampler("ddim", SD_SCHEDULER, CALLS), params))


@contextmanager
def released(denoiser, names: list[str], interval: int, order: int):
    """Give a copy of the denoiser with diffusers' cache on."""
    cached = copy.deepcopy(denoiser)
    config = TaylorSeerCacheConfig(interval, max_order=order, taylor_factors_dtype=torch.float32)
    config.cache_identifiers = names
    apply_taylorseer_cache(cached, config)
    with CacheMixin.cache_context(cached, "both branches"):
        yield cached


@pytest.mark.parametrize(("interval", "order"), [(4, 0), (3, 1), (4, 2)])
def test_taylorseer_as_a_schedule_equals_diffusers_hooks_in_latents_and_macs(drawing, interval, order):
    family, denoiser, draw = drawing
    plan = planned(family, denoiser, interval=interval, order=order)
    share = 1 - plan.costs.pruned_ratio(plan.schedule, "full")
    dense, dense_macs = draw(denoiser, plan.sampler)
    with gated(denoiser, plan.costs.graph, plan.schedule):
        ours, our_macs = draw(denoiser, plan.sampler)
    with released(denoiser, HOOKED[family.name], interval, order) as cached:
        theirs, their_macs = draw(cached, plan.sampler)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert (dense - theirs).abs().max() > 1e-3  # names that match no module would leave the copy dense
    assert our_macs / dense_macs == pytest.approx(share, abs=1e-6)
    if family is not SD15:
        assert their_macs == our_macs


def test_a_series_of_order_2_continues_lines_and_what_it_knows_of_parabolas():
    computed = np.zeros((12, 1), dtype=bool)
    computed[[0, 1, 2, 4, 8]] = True
    calls = np.arange(12.0)
    coefficients = Taylor(2)(computed)[:, 0]
    for call in np.flatnonzero(~computed[:, 0]):
        last = [before for before in np.flatnonzero(computed[:, 0]) if before < call][::-1][:3]
        assert coefficients[call] @ calls[last] == pytest.approx(call)  # lines, exactly
    last = calls[[8, 4, 2]] ** 2  # 8^2 has the slope 12 over the last gap and 6 over the one before: (12 - 6) / 4
    assert coefficients[10] @ last == pytest.approx(64 + 12 * 2 + 1.5 * 2**2 / 2)


FRONTIER = load_suite(ROOT / "benchmarks/suites/frontier.toml", lambda row: "any")


@cache
def shapes_of(model: str) -> tuple[Any, CostModel]:
    """Return a model of the zoo without weights, and the MACs of its layers at its own text length."""
    parts = DiffusionPipeline.load_config(ZOO / model)
    part = "unet" if "unet" in parts else "transformer"
    kind = getattr(diffusers, parts[part][1])
    with torch.device("meta"):
        denoiser = kind.from_config(kind.load_config(ZOO / model / part))
    family, probe = family_of(denoiser), family_of(denoiser).probe(denoiser)
    for name in probe.keys() & {"encoder_hidden_states", "encoder_attention_mask"}:
        tokens = json.loads((ZOO / model / "tokenizer/tokenizer_config.json").read_text())["model_max_length"]
        probe[name] = probe[name][:, :tokens]
    return denoiser, family.costs(denoiser, family.sites(denoiser, "layer"), probe)


@pytest.mark.parametrize("spec", [spec for spec in FRONTIER if "taylor1" in spec.id], ids=lambda spec: spec.id)
def test_the_frontiers_intervals_are_the_smallest_within_their_ratio(spec):
    denoiser, costs = shapes_of(spec.model)
    sampler = Sampler(spec.scheduler, SD_SCHEDULER, spec.steps)
    ratio, pruned = float(spec.id.rpartition("-")[2]), []
    for interval in (spec.params["interval"] - 1, spec.params["interval"]):
        plan = method("taylorseer").plan(PlanContext(denoiser, costs, sampler, {**spec.params, "interval": interval}))
        pruned.append(plan.costs.pruned_ratio(plan.schedule, "full"))
    assert pruned[0] < ratio <= pruned[1]
