"""The contract that every family meets, on tiny random instances, with sites of both units."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dipgo import (
    FAMILIES,
    Diffusion,
    DipgoError,
    Inputs,
    Outcome,
    Sampler,
    Schedule,
    Site,
    branch_guidance,
    count_costs,
    family_of,
    initial_noise,
    rollout,
    trace_graph,
)
from tests.conftest import SD_SCHEDULER
from tests.helpers.contract import CALLS, PICTURES, UNITS, Instance, instance, relative


@pytest.fixture(scope="module", params=[(f, u) for f in FAMILIES for u in UNITS], ids=lambda p: f"{p[0].name}-{p[1]}")
def made(request) -> Instance:
    return instance(*request.param)


@torch.no_grad()
def test_everything_kept_changes_no_bit(made):
    sampler = Sampler("ddim", SD_SCHEDULER, CALLS)
    plain = rollout(Diffusion(made.denoiser, sampler, 3.0), Inputs(initial_noise([5, 6], (4, 8, 8)), made.conditioning))
    assert torch.equal(made.run(Schedule.dense(made.graph.sites, CALLS)), plain)


@torch.no_grad()
@pytest.mark.parametrize("seed", range(2))
def test_hard_equals_soft(made, seed):
    schedule = made.reuse(seed, share=0.4 + 0.4 * seed)
    hard, soft = made.run(schedule), made.run(torch.from_numpy(schedule.reuse.copy()).float())
    dense = made.run(Schedule.dense(made.graph.sites, CALLS))
    assert relative(hard, soft) < 1e-5 and relative(hard, dense) > 1e-4


@torch.no_grad()
def test_hard_equals_soft_where_all_sites_of_a_call_are_reused(made):
    schedule = Schedule.skip_calls(made.graph.sites, CALLS, [0, 3])
    assert relative(made.run(schedule), made.run(torch.from_numpy(schedule.reuse.copy()).float())) < 1e-5


@torch.no_grad()
def test_what_is_computed_is_what_the_graph_says(made):
    schedule = made.reuse(3)
    execution = made.graph.execute(schedule)
    entered = []
    handles = [  # a part of each site that runs when, and only when, its module does
        next(
            m for m in made.denoiser.get_submodule(Site.parse(site).module).modules() if not list(m.children())
        ).register_forward_hook(lambda *_, site=site: entered.append(site))
        for site in made.graph.sites
    ]
    made.run(schedule)
    for handle in handles:
        handle.remove()
    expected = np.select([execution.computed, execution.reused], [Outcome.COMPUTED, Outcome.REUSED], Outcome.DEAD)
    assert (made.trace.outcomes == expected).all()
    assert {site: entered.count(site) > 0 for site in made.graph.sites} == dict.fromkeys(made.graph.sites, True)
    if not any("transformer_blocks.0" in site for site in made.graph.sites):  # DiT's final layer borrows a part
        assert [entered.count(site) for site in made.graph.sites] == execution.computed.sum(0).tolist()


@torch.no_grad()
@pytest.mark.parametrize("seed", range(2))
def test_executed_macs_equal_the_sum_of_the_costs(made, seed):
    schedule = made.reuse(seed, share=0.7)
    costs = count_costs(made.denoiser, made.graph, made.probe)
    spent = costs.full.per_call(made.graph.execute(schedule)).sum()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        made.run(schedule)
    assert counter.get_total_flops() // 2 == 2 * PICTURES * spent


def test_gradients_with_checkpointing_equal_those_without(made):
    gradients = []
    for checkpoint in (False, True):
        gates = (0.4 * torch.from_numpy(made.reuse(2).reuse.copy()).float()).requires_grad_()
        made.run(gates, backward=True, checkpoint=checkpoint)
        gradients.append(gates.grad)
    assert (gradients[0][1:].abs().amax(0) > 0).all()  # every site matters
    torch.testing.assert_close(gradients[0], gradients[1])


def test_gates_of_exactly_one_get_the_gradient_of_gates_just_below(made):
    gradients = []
    for one in (1.0, 1 - 1e-6):  # at 1 the backward pass through the block itself is spared
        gates = (one * torch.from_numpy(made.reuse(4).reuse.copy())).float().requires_grad_()
        made.run(gates, backward=True)
        gradients.append(gates.grad)
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4 * float(gradients[1].abs().max()))


@torch.no_grad()
def test_hooks_leave_no_trace(made):
    before = {name: set(vars(module)) for name, module in made.denoiser.named_modules()}
    made.run(made.reuse(1))
    assert before == {name: set(vars(module)) for name, module in made.denoiser.named_modules()}
    assert not any(module._forward_hooks for module in made.denoiser.modules())


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_holding_whole_calls_on_ddim_is_ddim_over_the_kept_timesteps(family):
    made = instance(family, sites=[""])
    kept = [0, 1, 4, 6]
    ours = made.run(Schedule.skip_calls(("",), 8, kept))
    assert np.flatnonzero(made.trace.ran).tolist() == kept
    scheduler = Sampler("ddim", SD_SCHEDULER, 8).scheduler()
    alphas, latents = scheduler.alphas_cumprod.double(), initial_noise([5, 6], (4, 8, 8)).double()
    timesteps = scheduler.timesteps[kept]
    for timestep, following in zip(timesteps, [*timesteps[1:], torch.tensor(0)], strict=True):  # DDIM written out
        sample = torch.cat([latents] * 2).float()
        out = made.denoiser(sample, timestep=timestep.expand(4), **made.conditioning, return_dict=False)[0]
        negative, positive = out[:, :4].double().chunk(2)
        noise, here, there = negative + 3 * (positive - negative), alphas[timestep], alphas[following]
        latents = there.sqrt() * (latents - (1 - here).sqrt() * noise) / here.sqrt() + (1 - there).sqrt() * noise
    assert relative(ours.double(), latents) < 1e-4


def test_block_counts_and_units():
    counts = {f.name: [len(f.sites(f.tiny(), unit)) for unit in UNITS] for f in FAMILIES}
    assert counts["sd15"] == counts["sd21"] == [9, 22 + 16] and counts["sdxl"] == [7, 17 + 11]
    assert counts["dit"] == counts["pixart"] == [4, 4]
    with pytest.raises(DipgoError, match="did you mean delta"):
        FAMILIES[0].sites(FAMILIES[0].tiny(), "detla")


def test_a_reused_output_frees_earlier_blocks_and_a_reused_delta_does_not():
    family = next(f for f in FAMILIES if f.name == "dit")
    for unit, dead in (("output", [True, True, False, False]), ("delta", [False] * 4)):
        made = instance(family, unit)
        reuse = np.zeros((3, 4), dtype=bool)
        reuse[2, 2] = True
        assert made.graph.bypassed
        assert made.graph.execute(Schedule(made.graph.sites, reuse)).dead[2].tolist() == dead


def test_families_are_told_apart_and_others_refused():
    for family in FAMILIES:
        assert family_of(family.tiny()) is family
    flux = FluxTransformer2DModel(num_layers=1, num_single_layers=1, attention_head_dim=8, axes_dims_rope=(2, 2, 4))
    with pytest.raises(DipgoError, match="no family describes this FluxTransformer2DModel"):
        family_of(flux)


def test_a_schedule_of_another_family_is_refused():
    unet, dit = (instance(next(f for f in FAMILIES if f.name == name)) for name in ("sd15", "dit"))
    with pytest.raises(DipgoError, match="another denoiser: 4 sites against 9"):
        unet.run(Schedule.dense(dit.graph.sites, 3))


def test_a_unet_without_a_mid_block_is_gated_by_its_other_blocks():
    family = FAMILIES[0]
    config = {k: v for k, v in family.tiny().config.items() if not k.startswith("_")}
    unet = UNet2DConditionModel(**{**config, "mid_block_type": None}).eval()
    probe = family.probe(unet)
    for unit, count in (("output", 8), ("delta", 20 + 15)):
        made = Instance(unet, trace_graph(unet, family.sites(unet, unit), probe), probe)
        assert len(made.graph.sites) == count and not any("mid" in site for site in made.graph.sites)
        with torch.no_grad():
            made.run(made.reuse(0))


def test_a_module_is_one_site_only():
    unet = FAMILIES[0].tiny()
    with pytest.raises(DipgoError, match="once"):
        trace_graph(unet, ["mid_block.resnets.0", "mid_block.resnets.0:delta"], FAMILIES[0].probe(unet))


def test_a_guidance_embedding_replaces_the_second_branch():
    family = FAMILIES[0]
    config = {k: v for k, v in family.tiny().config.items() if not k.startswith("_")}
    assert branch_guidance(UNet2DConditionModel(**{**config, "time_cond_proj_dim": 8}), 4.0) == 1.0
    assert branch_guidance(family.tiny(), 4.0) == 4.0
