from __future__ import annotations

from collections import Counter
from math import prod

import numpy as np
import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dipgo import FAMILIES, BlockGraph, DipgoError, Inputs, Schedule, count_costs, gated, rollout, trace_graph
from dipgo.costs import RanMacs


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


class Products(nn.Module):
    """A site that multiplies by one of torch's many names, and a linear layer after it."""

    def __init__(self, multiply):
        super().__init__()
        self.block, self.last = Multiply(multiply), nn.Linear(8, 8)

    def forward(self, sample):
        return (self.last(self.block(sample)),)


class Multiply(nn.Module):
    def __init__(self, multiply):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))
        self.bilinear, self.lstm = nn.Bilinear(8, 3, 8), nn.LSTM(8, 8, num_layers=2, bidirectional=True)
        self.gru, self.attention = nn.GRU(8, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.multiply = multiply

    def forward(self, sample):
        return self.multiply(self, sample)


SQUARE, ROWS = 64, 4  # of the weight; of the sample
PRODUCTS = {
    "matmul": (ROWS * SQUARE, lambda m, x: x @ m.weight),
    "linear without bias": (ROWS * SQUARE, lambda m, x: nn.functional.linear(x, m.weight)),
    "tensordot": (ROWS * SQUARE, lambda m, x: torch.tensordot(x, m.weight, dims=1)),
    "inner": (ROWS * SQUARE, lambda m, x: torch.inner(x, m.weight)),
    "einsum": (ROWS * SQUARE, lambda m, x: torch.einsum("nc,cd->nd", x, m.weight)),
    "multi_dot": (2 * ROWS * SQUARE, lambda m, x: torch.linalg.multi_dot([x, m.weight, m.weight])),
    "mv": (SQUARE, lambda m, x: x + m.weight.mv(x[0])),
    "addmv": (SQUARE, lambda m, x: x + torch.addmv(x[0], m.weight, x[1])),
    "dot": (8, lambda m, x: x * torch.dot(x[0], x[1])),
    "addmm in place": (ROWS * SQUARE, lambda m, x: x.clone().addmm_(x, m.weight)),
    "addbmm": (2 * ROWS * SQUARE, lambda m, x: torch.addbmm(x, x.expand(2, ROWS, 8), m.weight.expand(2, 8, 8))),
    "baddbmm": (ROWS * SQUARE, lambda m, x: torch.baddbmm(x[None], x[None], m.weight[None])[0]),
    "convolution": (ROWS * SQUARE, lambda m, x: nn.functional.conv1d(x[..., None], m.weight[..., None])[..., 0]),
    "bilinear": (ROWS * SQUARE * 3, lambda m, x: m.bilinear(x, x[:, :3].contiguous())),
    "lstm": (ROWS * 2 * 4 * (2 * SQUARE + 3 * SQUARE), lambda m, x: m.lstm(x[:, None])[0][:, 0, :8]),
    "gru": (ROWS * 3 * 2 * SQUARE, lambda m, x: m.gru(x[:, None])[0][:, 0]),
    "attention": (ROWS * 4 * SQUARE + 2 * ROWS * ROWS * 8, lambda m, x: m.attention(x[None], x[None], x[None])[0][0]),
    "encoder layer": (ROWS * (4 * SQUARE + 2 * 8 * 16) + 2 * ROWS * ROWS * 8, lambda m, x: m.layer(x[None])[0]),
    "fewer heads of keys": (
        2 * 4 * ROWS * ROWS * 2,
        lambda m, x: (
            nn.functional.scaled_dot_product_attention(
                x.view(1, ROWS, 4, 2).mT.mT.transpose(1, 2),
                *[x.view(1, ROWS, 4, 2).transpose(1, 2)[:, :2]] * 2,
                enable_gqa=True,
            )
            .transpose(1, 2)
            .reshape(ROWS, 8)
        ),
    ),
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_counts_under_whatever_name_it_is_called(name, device):
    right, multiply = PRODUCTS[name]
    with torch.device(device):
        model, inputs = Products(multiply).eval(), {"sample": torch.randn(ROWS, 8)}
        costs = count_costs(model, trace_graph(model, ["block"], inputs), inputs)
        assert costs.full.sites.tolist() == [right] and costs.full.rest == ROWS * SQUARE
        with torch.inference_mode(), RanMacs() as ran:
            model(**inputs)
        assert ran.total == right + ROWS * SQUARE


@torch.library.custom_op("dipgo_tests::doubled", mutates_args=())
def doubled(values: torch.Tensor) -> torch.Tensor:
    return 2 * values


@pytest.mark.parametrize(
    ("name", "multiply"),
    [
        ("aten::_cdist_forward", lambda m, x: torch.cdist(x, m.weight, p=1.0)),
        ("aten::_transformer_encoder_layer_fwd", lambda m, x: fused_layer(m.layer, x[None])[0]),
        ("dipgo_tests::doubled", lambda m, x: doubled(x)),
    ],
)
def test_an_operator_that_nobody_can_count_is_an_error(name, multiply):
    model, inputs = Products(multiply).eval(), {"sample": torch.randn(ROWS, 8)}
    graph = trace_graph(model, ["block"], inputs)
    with pytest.raises(DipgoError, match=f"no count of MACs for the operator {name}; give torch its formula"):
        count_costs(model, graph, inputs)


def fused_layer(layer, x):
    """An encoder layer as torch's single operator for it, called by its name."""
    attention = layer.self_attn
    weights = [attention.in_proj_weight, attention.in_proj_bias, attention.out_proj.weight, attention.out_proj.bias]
    norms = [p for norm in (layer.norm1, layer.norm2) for p in (norm.weight, norm.bias)]
    linears = [p for linear in (layer.linear1, layer.linear2) for p in (linear.weight, linear.bias)]
    return torch._transformer_encoder_layer_fwd(x, 8, 2, *weights, False, False, 1e-5, *norms, *linears)


def test_counting_leaves_torch_as_it_was():
    assert torch.backends.mha.get_fastpath_enabled()
    with RanMacs(), RanMacs():
        assert not torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_site_that_runs_twice_counts_twice():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.Linear(4, 4), shared)
    model.forward = lambda sample: (shared(model[1](shared(sample))),)
    graph = BlockGraph(("0",), (frozenset(),), frozenset({0}))  # traced graphs refuse such a site
    costs = count_costs(model, graph, {"sample": torch.ones(1, 4)}).full
    assert costs.sites.tolist() == [32] and costs.rest == 16


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_fvcore_counts_the_same(family):
    """fvcore counts the graph of a traced call by itself; it lacks a handle for fused attention."""
    denoiser = family.tiny()
    costs = family.costs(denoiser, family.blocks(denoiser))
    names, tensors = zip(*((k, v) for k, v in costs.probe.items() if isinstance(v, torch.Tensor)), strict=True)
    others = {key: value for key, value in costs.probe.items() if key not in names}

    class Call(nn.Module):
        def __init__(self):
            super().__init__()
            self.denoiser = denoiser

        def forward(self, *tensors):
            return self.denoiser(**dict(zip(names, tensors, strict=True)), **others, return_dict=False)[0]

    def attention(inputs, outputs):
        query, key, value = (each.type().sizes() for each in inputs[:3])
        return Counter({"attention": prod(query[:-1]) * key[-2] * (query[-1] + value[-1])})

    analysis = FlopCountAnalysis(Call(), tensors).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    counts = analysis.set_op_handle("aten::scaled_dot_product_attention", attention).by_operator()
    layers = sum(counts[name] for name in ("conv", "linear", "addmm"))
    assert layers + sum(counts[name] for name in ("attention", "matmul", "bmm")) == costs.full.dense
    assert costs.paper.dense == layers + family.macs.attention * (costs.full.dense - layers)
