"""Compiled blocks under `gated`: the same numbers, and every block compiles once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch._dynamo.utils import counters

from baselines import Plan
from benchmarks.models.compiled import compiled, regions
from benchmarks.models.model import Model
from benchmarks.speed.cases import Case
from dipgo import FAMILIES, Sampler, family_of, gated
from tests.conftest import SD_SCHEDULER

CALLS = 6


@dataclass(frozen=True)
class Pipeline:
    """As much of one as a case needs."""

    unet: torch.nn.Module
    device: torch.device = torch.device("cpu")

    def encode_prompt(self, captions, device, images, guided):
        """Text of six tokens for each caption, and for each unconditional row."""
        return torch.zeros(len(captions), 6, 8), torch.zeros(len(captions), 6, 8) if guided else None


@pytest.fixture
def case() -> Case:
    """SD-1.5's kind of U-Net, of two stages with one layer each: tracing is what takes long."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(4, 8),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=2,
    )
    return Case(Model("tiny", Pipeline(unet.eval())), Sampler("ddim", SD_SCHEDULER, CALLS))


@pytest.fixture
def compilations():
    """Counts the graphs that were compiled, and the breaks in them."""
    torch._dynamo.reset()
    counters.clear()
    yield lambda: (counters["stats"]["unique_graphs"], sum(counters["graph_break"].values()))
    torch._dynamo.reset()


@torch.no_grad()
def predictions(case: Case, plan: Plan) -> torch.Tensor:
    """What the denoiser predicts in every call of a run."""
    unet, torch_random = case.denoiser, torch.Generator().manual_seed(0)
    inputs = family_of(unet).probe(unet)
    found = []
    with gated(unet, plan.costs.graph, plan.schedule):
        for timestep in plan.sampler.timesteps:
            inputs |= {"sample": torch.randn(1, 4, 8, 8, generator=torch_random), "timestep": torch.tensor([timestep])}
            found.append(unet(**inputs, return_dict=False)[0])
    return torch.cat(found)


def test_every_block_compiles_once_whatever_the_schedules(case, compilations):
    sites, random = case.model.costs.graph.sites, np.random.default_rng(0)
    plans = [case.gates(sites, np.arange(CALLS)[:, None] * random.random((CALLS, len(sites))) > 1) for _ in range(3)]
    sets = {tuple(row) for plan in plans for row in plan.schedule.reuse}
    assert len(sets) > len(sites)
    eager = [predictions(case, plan) for plan in plans]
    with compiled(case.denoiser, backend="eager"):
        found = [predictions(case, plan) for plan in plans]
        assert compilations() == (len(sites), 0)
    with compiled(case.denoiser, backend="eager"):
        again = predictions(case, plans[0])
    assert compilations() == (len(sites), 0)
    assert all(torch.equal(a, b) for a, b in zip([*eager, eager[0]], [*found, again], strict=True))
    assert not any("forward" in vars(module) for module in case.denoiser.modules())


def test_a_block_that_is_cut_open_compiles_by_its_layers(case, compilations):
    plan = case.plan("deepcache", interval=2, branch=0)
    paths = regions(case.denoiser, plan.schedule.sites)
    assert paths == plan.schedule.sites and "up_blocks.1" not in paths
    eager = predictions(case, plan)
    with compiled(case.denoiser, plan.schedule.sites, backend="eager"):
        assert torch.equal(predictions(case, plan), eager)
        count = compilations()
        assert torch.equal(predictions(case, plan), eager)
    assert count == compilations() and 0 < count[0] <= len(paths) and not count[1]


def test_layers_whose_shortcut_is_watched_stay_as_they_are(case):
    sites = case.model.family.sites(case.denoiser, "delta")
    plan = case.gates(list(sites), np.repeat(np.arange(CALLS)[:, None] % 2 == 1, len(sites), axis=1))
    eager = predictions(case, plan)
    with compiled(case.denoiser, sites, backend="eager"):
        assert torch.equal(predictions(case, plan), eager)
    left_out = {site.removesuffix(":delta") for site in sites} - {*regions(case.denoiser, sites)}
    assert left_out and all(case.denoiser.get_submodule(path).conv_shortcut is not None for path in left_out)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_without_sites_the_blocks_of_every_family_compile(family):
    denoiser = family.tiny()
    assert regions(denoiser) == family.blocks(denoiser)
