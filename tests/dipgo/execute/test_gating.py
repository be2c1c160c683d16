from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from dipgo import Diffusion, DipgoError, Inputs, Outcome, PartialTrajectory, Schedule, gated, rollout, trace_graph
from tests.conftest import GUIDANCE, SD_SCHEDULER


def run(tiny, gates, sampler, **kwargs):
    with torch.no_grad(), gated(tiny.denoiser, tiny.graph, gates, **kwargs) as trace:
        return rollout(tiny.diffusion(sampler), tiny.inputs), trace


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("name", ["ddim", "plms", "dpm", "lcm"])
def test_everything_kept_is_bit_equal_to_the_stock_pipeline(tiny, name):
    text_config = CLIPTextConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4)
    sampler = tiny.sampler(name)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text_config),
        tokenizer=None,
        unet=tiny.denoiser,
        scheduler=sampler.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    negative, positive = tiny.conditioning["encoder_hidden_states"].chunk(2)
    stock = pipeline(
        prompt_embeds=positive,
        negative_prompt_embeds=negative,
        generator=[torch.Generator().manual_seed(seed) for seed in tiny.seeds],
        num_inference_steps=sampler.steps,
        guidance_scale=GUIDANCE,
        output_type="latent",
    ).images
    ours, trace = run(tiny, Schedule.dense(tiny.graph.sites, sampler.calls), sampler)
    assert torch.equal(ours, stock)
    assert (trace.outcomes == Outcome.COMPUTED).all() and trace.ran.all()


def ddim_over(tiny, kept: np.ndarray) -> torch.Tensor:
    """DDIM (eta 0) written out over arbitrary timesteps: an oracle that shares no code with the executor."""
    scheduler = PNDMScheduler.from_config(SD_SCHEDULER)
    alphas = scheduler.alphas_cumprod.double()
    latents = tiny.noise.double()
    for position, timestep in enumerate(kept):
        sample = torch.cat([latents] * 2).float()
        out = tiny.denoiser(sample, int(timestep), **tiny.conditioning).sample.double()
        negative, positive = out.chunk(2)
        noise = negative + GUIDANCE * (positive - negative)
        here = alphas[timestep]
        last = position + 1 == len(kept)
        there = alphas[0] if last else alphas[kept[position + 1]]
        clean = (latents - (1 - here).sqrt() * noise) / here.sqrt()
        latents = there.sqrt() * clean + (1 - there).sqrt() * noise
    return latents


def test_whole_step_skips_on_ddim_equal_ddim_over_the_kept_timesteps(tiny):
    sampler = tiny.sampler("ddim", 20)
    kept = [0, 1, 4, 9, 13, 18]
    schedule = Schedule.skip_calls(tiny.graph.sites, sampler.calls, kept)
    ours, trace = run(tiny, schedule, sampler)
    with torch.no_grad():
        oracle = ddim_over(tiny, sampler.timesteps[kept])
    assert relative(ours.double(), oracle) < 1e-4
    assert list(np.flatnonzero(trace.ran)) == kept


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["ddim", "plms"])
def test_a_hard_schedule_equals_soft_gates_of_zero_and_one(tiny, name, seed):
    sampler = tiny.sampler(name, 8)
    reuse = tiny.random_reuse(sampler.calls, seed, share=0.3 + 0.15 * seed)
    hard, _ = run(tiny, Schedule(tiny.graph.sites, reuse.numpy()), sampler)
    soft, _ = run(tiny, reuse.float(), sampler)
    dense, _ = run(tiny, torch.zeros(reuse.shape), sampler)
    assert relative(hard, soft) < 1e-5
    assert relative(dense, soft) > 1e-4


def test_the_trace_shows_that_dead_blocks_did_not_run(tiny):
    sampler = tiny.sampler("ddim", 8)
    schedule = Schedule(tiny.graph.sites, tiny.random_reuse(sampler.calls, 1).numpy())
    entered = []
    handles = [
        tiny.denoiser.get_submodule(f"{site}.resnets.0").register_forward_hook(
            lambda *_, site=site: entered.append(site)
        )
        for site in tiny.graph.sites
    ]
    _, trace = run(tiny, schedule, sampler)
    for handle in handles:
        handle.remove()
    execution = tiny.graph.execute(schedule)
    assert execution.dead.any() and execution.reused.any()
    assert (trace.outcomes == np.select([execution.computed, execution.reused], [0, 1], 2)).all()
    counts = [entered.count(site) for site in tiny.graph.sites]  # seen from inside the blocks
    assert counts == execution.computed.sum(0).tolist()


def test_a_call_in_which_nothing_runs_does_not_enter_the_denoiser(tiny):
    sampler = tiny.sampler("ddim", 6)
    calls = []
    handle = tiny.denoiser.conv_in.register_forward_hook(lambda *_: calls.append(1))
    run(tiny, Schedule.skip_calls(tiny.graph.sites, 6, [0, 3]), sampler)
    handle.remove()
    assert len(calls) == 2


@pytest.mark.parametrize("depth", [1, 2])
def test_only_values_that_a_later_call_reads_are_kept(tiny, depth, remembered):
    reuse = np.zeros((6, len(tiny.graph.sites)), dtype=bool)
    middle = tiny.graph.sites.index("mid_block")
    reuse[3, middle] = True
    coefficients = np.full((*reuse.shape, depth), 1 / depth)
    alive, sampler = [], tiny.sampler("ddim", steps=6)
    handle = tiny.denoiser.register_forward_hook(lambda *call: alive.append(remembered()))
    try:
        run(tiny, Schedule(tiny.graph.sites, reuse, coefficients), sampler)
    finally:
        handle.remove()
    computed_before_3 = min(depth, 2)
    assert alive[1] == computed_before_3 - 1  # call 1's is read in call 3 where two are remembered, call 0's is not
    assert alive[2] == computed_before_3
    assert alive[4] == 0  # no call reads them any more


def test_gradients_with_checkpointing_equal_those_without(tiny):
    sampler = tiny.sampler("ddim", 5)
    start = 0.4 * tiny.random_reuse(sampler.calls, 2).float()
    gradients = []
    for checkpoint in (False, True):
        gates = start.clone().requires_grad_()
        with gated(tiny.denoiser, tiny.graph, gates, checkpoint=checkpoint):
            rollout(tiny.diffusion(sampler), tiny.inputs).square().mean().backward()
        gradients.append(gates.grad)
    assert gradients[0][1:].abs().min() > 0
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_checkpointed_backward_pass_outside_the_context_is_refused(tiny):
    gates = torch.zeros(5, 9).requires_grad_()
    with gated(tiny.denoiser, tiny.graph, gates, checkpoint=True):
        latents = rollout(tiny.diffusion(tiny.sampler("ddim", 5)), tiny.inputs)
    with pytest.raises(DipgoError, match="inside the context"):
        latents.sum().backward()


def test_two_guidance_passes_keep_a_cache_each(tiny):
    sampler = tiny.sampler("ddim", 6)
    reuse = Schedule(tiny.graph.sites, tiny.random_reuse(sampler.calls, 3).numpy())
    together, _ = run(tiny, reuse, sampler)

    def one_after_the_other(sample, timestep, encoder_hidden_states, return_dict):
        halves = zip(sample.chunk(2), timestep.chunk(2), encoder_hidden_states.chunk(2), strict=True)
        return (torch.cat([tiny.denoiser(*half).sample for half in halves]),)

    with torch.no_grad(), gated(tiny.denoiser, tiny.graph, reuse, calls_per_step=2):
        apart = rollout(Diffusion(one_after_the_other, sampler, GUIDANCE), tiny.inputs)
    assert relative(apart, together) < 1e-5
    with pytest.raises(DipgoError, match="calls_per_step=2"):  # 12 calls would pass for two trajectories
        with torch.no_grad(), gated(tiny.denoiser, tiny.graph, reuse):
            rollout(Diffusion(one_after_the_other, sampler, GUIDANCE), tiny.inputs)


def test_a_second_run_in_the_same_context_starts_afresh(tiny):
    sampler = tiny.sampler("ddim", 6)
    schedule = Schedule(tiny.graph.sites, tiny.random_reuse(6, 4).numpy())
    with torch.no_grad(), gated(tiny.denoiser, tiny.graph, schedule):
        first = rollout(tiny.diffusion(sampler), tiny.inputs)
        rollout(tiny.diffusion(sampler), Inputs(tiny.noise + 1, tiny.conditioning))
        again = rollout(tiny.diffusion(sampler), tiny.inputs)
    assert torch.equal(first, again)


def test_leaves_no_trace_on_the_denoiser(tiny):
    before = {name: set(vars(module)) for name, module in tiny.denoiser.named_modules()}
    run(tiny, Schedule.dense(tiny.graph.sites, 6), tiny.sampler())
    assert before == {name: set(vars(module)) for name, module in tiny.denoiser.named_modules()}


def test_a_partial_trajectory_is_refused(tiny):
    with pytest.raises(PartialTrajectory, match="7"):
        run(tiny, Schedule.dense(tiny.graph.sites, 7), tiny.sampler(steps=6))


def test_gates_of_another_shape_and_double_gating_are_refused(tiny):
    with pytest.raises(DipgoError, match="shape"):
        run(tiny, torch.zeros(6, 4), tiny.sampler())
    with pytest.raises(DipgoError, match="call 0"):
        run(tiny, torch.ones(6, 9), tiny.sampler())
    with pytest.raises(DipgoError, match="gated already"):
        with gated(tiny.denoiser, tiny.graph, torch.zeros(6, 9)):
            run(tiny, torch.zeros(6, 9), tiny.sampler())
    run(tiny, torch.zeros(6, 9), tiny.sampler())  # and the refusal left nothing behind


class Block(nn.Module):
    """What a block transforms comes first in its forward, whatever its name."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x, scale):
        return x + scale * self.inner(x)


class Chain(nn.Module):
    """Calls its blocks in one of the `WAYS`."""

    WAYS = {
        "by position": lambda block, x, t: block(x, t),
        "by name": lambda block, x, t: block(x=x, scale=t),
        "by names in another order": lambda block, x, t: block(scale=t, x=x),
        "with the rest by name": lambda block, x, t: block(x, scale=t),
    }

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks, self.way = nn.ModuleList([Block() for _ in range(3)]), way

    def forward(self, sample, timestep):
        for block in self.blocks:
            sample = self.WAYS[self.way](block, sample, timestep[:, None] / 1000)
        return sample

    def drawn(self) -> torch.Tensor:
        """What its last call gives in a schedule that reuses deltas."""
        sites, sample = [f"blocks.{i}:delta" for i in range(3)], torch.ones(1, 4)
        graph = trace_graph(self, sites, {"sample": sample, "timestep": torch.ones(1)})
        reuse = np.array([[False] * 3, [True, False, True], [False, True, True]])
        with torch.no_grad(), gated(self, graph, Schedule(sites, reuse)):
            return [self(call * sample, torch.full((1,), 900.0 - call)) for call in range(3)][-1]


@pytest.mark.parametrize("way", Chain.WAYS)
def test_a_delta_is_the_same_however_a_block_is_called(way):
    assert torch.equal(Chain(way).drawn(), Chain("by position").drawn())


def test_a_block_without_an_input_has_no_delta():
    Chain.WAYS["without input"] = lambda block, x, t: x + block()
    chain = Chain("without input")
    for block in chain.blocks:
        block.forward = lambda: torch.zeros(1, 4)
    try:
        with pytest.raises(DipgoError, match="the block's output .* has the shape of none of its inputs"):
            chain.drawn()
    finally:
        del Chain.WAYS["without input"]
