from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dipgo import BlockGraph, DipgoError, Inputs, Schedule, count_costs, gated, rollout, trace_graph


def independently_counted(tiny, schedule, sampler) -> int:
    """Multiply-accumulates of a real gated run, both guidance branches, by torch's own counter."""
    noise = tiny.noise[:1]
    conditioning = {"encoder_hidden_states": tiny.conditioning["encoder_hidden_states"][:2].repeat(1, 13, 1)[:, :77]}
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        with gated(tiny.denoiser, tiny.graph, schedule):
            rollout(tiny.diffusion(sampler), Inputs(noise, conditioning))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("seed", range(3))
def test_executed_macs_equal_the_sum_of_the_costs(tiny, tiny_costs, seed):
    sampler = tiny.sampler("ddim", 6)
    schedule = Schedule(tiny.graph.sites, tiny.random_reuse(6, seed, share=0.7).numpy())
    spent = tiny_costs.full.per_call(tiny.graph.execute(schedule)).sum()
    assert independently_counted(tiny, schedule, sampler) == 2 * spent


def test_the_paper_convention_leaves_attention_products_out(tiny_costs):
    assert 0 < tiny_costs.paper.dense < tiny_costs.full.dense


def test_pruned_ratio_and_step_skip_share_of_known_schedules(tiny, tiny_costs):
    sites = tiny.graph.sites
    dense = Schedule.dense(sites, 10)
    assert tiny_costs.pruned_ratio(dense) == pytest.approx(0) and tiny_costs.step_skip_share(dense) is None
    skips = Schedule.skip_calls(sites, 10, [0, 5])
    assert tiny_costs.pruned_ratio(skips) == pytest.approx(0.8)
    assert tiny_costs.step_skip_share(skips) == pytest.approx(1)
    reuse = np.zeros((10, 9), dtype=bool)
    reuse[3, sites.index("up_blocks.2")] = True
    assert tiny_costs.step_skip_share(Schedule(sites, reuse)) == 0


def test_gamma_counts_the_cascade(tiny, tiny_costs):
    gamma = dict(zip(tiny.graph.sites, tiny_costs.freed_shares(), strict=True))
    assert gamma["up_blocks.3"] == pytest.approx(1)  # reads everything, so pruning it frees the call
    assert all(0 < share <= 1 for share in gamma.values())
    own = dict(zip(tiny.graph.sites, tiny_costs.paper.sites / tiny_costs.paper.dense, strict=True))
    assert gamma["up_blocks.2"] > own["up_blocks.2"] + own["up_blocks.1"]


def test_an_uncounted_matrix_product_is_an_error():
    class Exotic(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Linear(4, 4)

        def forward(self, sample, return_dict=True):
            return (torch.addbmm(torch.zeros(4, 4), self.block(sample), sample),)

    model, inputs = Exotic(), {"sample": torch.ones(2, 4, 4)}
    graph = trace_graph(model, ["block"], inputs)
    assert graph == BlockGraph(("block",), (frozenset(),), frozenset({0}), bypassed=True)
    with pytest.raises(DipgoError, match="addbmm"):
        count_costs(model, graph, inputs)
