"""Blocks that are found by watching a call, and the inputs of a pipeline's own first call."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn

from dipgo import FAMILIES, DipgoError, Schedule, capture, costs_of, find_sites, gated
from tests.conftest import SD_SCHEDULER

EMBEDS = {"prompt_embeds": torch.ones(1, 6, 8), "negative_prompt_embeds": torch.zeros(1, 6, 8)}


@pytest.fixture
def pipeline(tiny):
    made = StableDiffusionPipeline(
        vae=None,
        text_encoder=None,
        tokenizer=None,
        unet=tiny.denoiser,
        scheduler=DDIMScheduler(**SD_SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def drawn(pipeline, **kwargs):
    generator = torch.Generator().manual_seed(3)
    return pipeline(**EMBEDS, generator=generator, num_inference_steps=3, output_type="latent", **kwargs).images


def test_captured_inputs_are_those_of_the_first_call(pipeline):
    seen = []
    handle = pipeline.unet.register_forward_pre_hook(lambda *call: seen.append(call[1:]), with_kwargs=True)
    drawn(pipeline)
    handle.remove()
    (sample, timestep), rest = seen[0]
    generator = torch.Generator().manual_seed(3)
    inputs = capture(pipeline, **EMBEDS, generator=generator, num_inference_steps=3)
    assert torch.equal(inputs["sample"], sample) and inputs["timestep"] == timestep
    assert torch.equal(inputs["encoder_hidden_states"], rest["encoder_hidden_states"])
    assert inputs.keys() == {"sample", "timestep", *rest}


def test_capturing_leaves_the_pipeline_its_scheduler_and_generators_as_they_were(pipeline):
    generator = torch.Generator().manual_seed(3)
    before = vars(pipeline).copy(), copy.deepcopy(vars(pipeline.scheduler)), torch.get_rng_state()
    capture(pipeline, **EMBEDS, generator=[generator], num_inference_steps=3)
    capture(pipeline, **EMBEDS, num_inference_steps=3)
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(3).get_state())
    assert vars(pipeline) == before[0] and torch.equal(torch.get_rng_state(), before[2])
    assert {k: str(v) for k, v in vars(pipeline.scheduler).items()} == {k: str(v) for k, v in before[1].items()}
    assert not pipeline.unet._forward_pre_hooks and type(pipeline.unet) is UNet2DConditionModel


def test_a_pipeline_without_the_denoiser_or_without_a_call_of_it_is_one_line(pipeline, tiny):
    with pytest.raises(DipgoError, match="has no module 'prior'; its modules are unet"):
        capture(pipeline, component="prior", **EMBEDS)
    pipeline.spare = nn.Linear(2, 2)
    with pytest.raises(DipgoError, match="StableDiffusionPipeline never called its spare in this run"):
        capture(pipeline, component="spare", **EMBEDS, num_inference_steps=1, output_type="latent")
    with gated(tiny.denoiser, tiny.graph, Schedule.dense(tiny.graph.sites, 3)):
        with pytest.raises(DipgoError, match="gated already"):
            capture(pipeline, **EMBEDS)
        drawn(pipeline)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_watching_finds_the_blocks_of_the_paper(family):
    denoiser = family.tiny()
    sites = find_sites(denoiser, family.probe(denoiser))
    assert sites == family.sites(denoiser)
    assert costs_of(denoiser, sites, family.probe(denoiser)) is family.costs(denoiser, sites)
    assert find_sites(denoiser, family.probe(denoiser), "call") == ("",)
    with pytest.raises(DipgoError, match="did you mean delta"):
        find_sites(denoiser, family.probe(denoiser), "detla")


class Block(nn.Linear):
    """A block by its class's name."""


class Plain(nn.Module):
    """No model of diffusers: no config, a positional time, a bare tensor as its output."""

    def __init__(self):
        super().__init__()
        self.embed, self.row = nn.Linear(1, 8), nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.stack, self.again, self.last = nn.Sequential(Block(8, 8), nn.ReLU()), Block(8, 8), nn.Linear(8, 8)
        self.unused, self.light = Block(8, 8), nn.ModuleList([nn.Identity()])
        self.unread = Block(8, 8)

    def forward(self, x, t):
        x = x + self.embed(t.view(1, 1).float() / 1000)
        for module in self.row[::-1]:
            x = x + module(x).tanh()
        self.unread(x)
        return self.last(self.light[0](self.again(self.again(self.stack(x)))))


def test_a_plain_module_is_found_traced_counted_and_gated_as_it_is():
    model, inputs = Plain(), {"x": torch.randn(1, 8), "t": torch.tensor(900)}
    sites = find_sites(model, inputs)
    assert sites == ("row.1", "row.0", "stack.0")
    costs = costs_of(model, sites, inputs)
    graph = costs.graph
    assert costs.full.sites.tolist() == [64, 64, 64] and costs.full.rest == 8 + 4 * 64
    with torch.no_grad(), gated(model, graph, Schedule.skip_calls(sites, 2, [0])):
        first, second = model(torch.ones(1, 8), torch.tensor(900)), model(torch.zeros(1, 8), torch.tensor(100))
    assert torch.equal(first, second)  # the last block's output is held, and nothing else reaches the output


def test_a_model_without_blocks_is_one_line():
    with pytest.raises(DipgoError, match="no blocks found in Linear: .*; name the sites by their dotted paths"):
        find_sites(nn.Linear(2, 2), {"input": torch.ones(1, 2)})
