from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from dipgo import BlockGraph, DipgoError, Schedule, family_of, trace_graph

CHAIN = BlockGraph(("a", "b", "c"), (frozenset(), frozenset({0}), frozenset({1})), frozenset({2}))


def run(graph: BlockGraph, *rows: str):
    return graph.execute(Schedule(graph.sites, np.array([[flag == "1" for flag in row] for row in rows])))


def names(mask: np.ndarray) -> list[str]:
    return ["".join("x" if flag else "." for flag in row) for row in mask]


def test_finds_the_skip_connections_of_a_unet(tiny):
    site = {name: index for index, name in enumerate(tiny.graph.sites)}
    assert len(site) == 9
    assert tiny.graph.output_reads == {site["up_blocks.3"]}
    assert tiny.graph.reads[site["up_blocks.3"]] == {site["down_blocks.0"], site["up_blocks.2"]}
    assert tiny.graph.reads[site["up_blocks.0"]] == {
        site["down_blocks.2"],
        site["down_blocks.3"],
        site["mid_block"],
    }
    assert tiny.graph.reads[site["down_blocks.0"]] == frozenset()


def test_follows_data_through_operations_between_layers(tiny):
    layers = tiny.family.layers(tiny.denoiser, "up_blocks.3")
    sites = tiny.graph.sites[:-1] + layers
    graph = trace_graph(tiny.denoiser, sites, tiny.probe)
    first = sites.index("up_blocks.3.resnets.0")  # reads a concatenation made outside of any site
    assert {sites[i] for i in graph.reads[first]} == {"down_blocks.0", "up_blocks.2"}


def test_reusing_the_last_block_frees_the_whole_call():
    execution = run(CHAIN, "000", "001", "000")
    assert names(execution.computed) == ["xxx", "...", "xxx"]
    assert names(execution.dead) == ["...", "xx.", "..."]


def test_reusing_a_middle_block_frees_what_only_it_reads():
    execution = run(CHAIN, "000", "010")
    assert names(execution.computed) == ["xxx", "..x"]
    assert names(execution.reused) == ["...", ".x."]


def test_a_value_reused_later_keeps_its_producer_alive():
    # In call 1 nobody reads b, but call 2 reuses b's output of call 1, so b and a run there.
    execution = run(CHAIN, "000", "001", "010")
    assert names(execution.computed) == ["xxx", "xx.", "..x"]


def test_a_reused_value_that_nobody_reads_is_dead():
    assert names(run(CHAIN, "000", "011").dead) == ["...", "xx."]


def test_refuses_a_schedule_for_other_sites(tiny):
    with pytest.raises(DipgoError, match="another denoiser"):
        tiny.graph.execute(Schedule.dense(("a", "b"), 3))


def test_refuses_unknown_sites_and_families(tiny):
    with pytest.raises(DipgoError, match="down_blocks.9"):
        trace_graph(tiny.denoiser, ["down_blocks.9"], tiny.probe)
    with pytest.raises(DipgoError, match="in order"):
        trace_graph(tiny.denoiser, tiny.graph.sites[::-1], tiny.probe)
    with pytest.raises(DipgoError, match="Linear"):
        from torch.nn import Linear

        family_of(Linear(1, 1))


def test_a_unet_without_a_mid_block_has_a_graph(tiny):
    config = {k: v for k, v in tiny.denoiser.config.items() if not k.startswith("_")}
    unet = UNet2DConditionModel(**{**config, "mid_block_type": None}).eval()
    graph = trace_graph(unet, tiny.family.blocks(unet), tiny.probe)
    assert "mid_block" not in graph.sites and len(graph.sites) == 8


def test_printing_shows_a_small_map(tiny):
    lines = str(tiny.graph).splitlines()
    assert len(lines) == 10
    assert lines[0].split() == ["0", "down_blocks.0", "<-", "inputs"]
    assert lines[8].split() == ["8", "up_blocks.3", "<-", "0", "7"] and lines[9].split() == ["output", "<-", "8"]
    bypassed = BlockGraph(("",), (frozenset(),), frozenset({0}), bypassed=True)
    assert "the whole call" in str(bypassed) and str(bypassed).endswith("<- 0, and inputs around the sites")


class TwoBlocks(nn.Module):
    """Two blocks, of which the second sees the first one's output only by `between`."""

    def __init__(self, between):
        super().__init__()
        self.first, self.second, self.between = nn.Linear(4, 4), nn.Linear(4, 4), between

    def forward(self, sample):
        return (self.second(self.between(self.first(sample))),)


def a_slice(value):
    new = torch.zeros(2, 4)
    new[:, 1:] = value[:, 1:]
    return new


def a_view_of_a_view(value):
    new = torch.zeros(2, 4)
    new.view(-1)[2:][:4].add_(value.flatten()[:4])
    return new


def an_older_view(value):
    new = torch.zeros(4, 4)
    older = new[:2]
    new.copy_(value.repeat(2, 1))
    return older


def a_sibling_view(value):
    new = torch.zeros(2, 4)
    sibling = new.view(2, 4)
    new.detach().mul_(value)
    return sibling


def a_mask(value):
    new = torch.zeros(2, 4)
    new[torch.ones(2, 4) > 0] = value.flatten()
    return new


def a_masked_scatter(value):
    return torch.zeros(2, 4).masked_scatter_(torch.ones(2, 4) > 0, value)


def indices(value):
    new = torch.zeros(2, 4)
    new[torch.tensor([1, 0])] = value
    return new


def index_put(value):
    new = torch.zeros(2, 4)
    new.index_put_((torch.tensor([0]), torch.tensor([1])), value[0, :1], accumulate=True)
    return new


def out_of_an_operator(value):
    new = torch.empty(2, 4)
    torch.add(value, 1, out=new)
    return new


def out_into_a_part(value):
    new = torch.zeros(2, 8)
    torch.mul(value, 2, out=new[:, 4:])
    return new[:, 2:6]


def many_at_once(value):
    new = [torch.zeros(2, 4), torch.zeros(2, 4)]
    torch._foreach_add_(new, [value, value])
    return new[1]


WRITES = [
    a_slice,
    a_view_of_a_view,
    an_older_view,
    a_sibling_view,
    a_mask,
    a_masked_scatter,
    indices,
    index_put,
    out_of_an_operator,
    out_into_a_part,
    many_at_once,
]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("between", WRITES, ids=lambda write: write.__name__)
def test_data_that_is_written_in_place_is_followed(between, device):
    if device == "meta" and between is a_mask:
        pytest.skip("torch cannot select by a mask without values")
    with torch.device(device):
        graph = trace_graph(TwoBlocks(between), ["first", "second"], {"sample": torch.ones(2, 4)})
    assert graph == BlockGraph(("first", "second"), (frozenset(), frozenset({0})), frozenset({1}))


class Stream(TwoBlocks):
    """The first block's output is written into the stream around it, and it hands an input on."""

    def forward(self, sample, hint):
        new = sample.clone()
        new[:, :2] += self.first(sample)[:, :2]
        return (self.second(new) + self.between(new, hint),)


def test_a_write_keeps_what_was_there():
    inputs = {"sample": torch.ones(2, 4), "hint": torch.ones(2, 4)}
    graph = trace_graph(Stream(lambda new, hint: new), ["first", "second"], inputs)
    assert graph.reads[1] == {0} and graph.output_reads == {0, 1} and graph.bypassed
    assert not trace_graph(TwoBlocks(torch.relu_), ["first", "second"], {"sample": torch.ones(2, 4)}).bypassed


class HandsOn(nn.Linear):
    def forward(self, sample, hint):
        return super().forward(sample), hint


def test_an_input_that_a_block_hands_on_is_still_an_input():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = HandsOn(4, 4)

        def forward(self, sample, hint):
            return (self.block(sample, hint)[0] + hint,)

    assert trace_graph(Model(), ["block"], {"sample": torch.ones(1, 4), "hint": torch.ones(1, 4)}).bypassed


class InPlace(nn.Linear):
    """A block that writes into what it is given."""

    def forward(self, sample):
        sample.add_(super().forward(sample))
        return sample


def test_a_block_that_writes_into_its_input_is_refused_where_another_reads_that():
    class Model(nn.Module):
        def __init__(self, reads_again):
            super().__init__()
            self.block, self.last, self.reads_again = InPlace(4, 4), nn.Linear(4, 4), reads_again

        def forward(self, sample):
            stream = sample + 1
            new = self.block(stream[:, :]) if self.reads_again != "itself" else self.block(stream)
            return (self.last(new) + (stream if self.reads_again else 0),)

    inputs = {"sample": torch.ones(1, 4)}
    assert trace_graph(Model(""), ["block", "last"], inputs).reads[1] == {0}
    for how in ("itself", "through a view"):
        with pytest.raises(DipgoError, match="block changes one of its inputs in place"):
            trace_graph(Model(how), ["block", "last"], inputs)


class Odd(nn.Module):
    """Blocks that are no sites, each for another reason."""

    def __init__(self):
        super().__init__()
        self.twice, self.unread, self.outer, self.last = (nn.Linear(4, 4) for _ in range(4))
        self.outer.inner = nn.Linear(4, 4)
        self.outer.register_forward_pre_hook(lambda module, args: (module.inner(args[0]),))
        self.again = self.twice

    def forward(self, sample):
        self.unread(sample)
        return (self.last(self.outer(self.twice(self.again(sample)))),)


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        (["twice"], "twice runs 2 times in a call"),
        (["again", "last"], "again runs 2 times in a call"),
        (["twice", "again"], "runs 2 times in a call"),
        (["unread", "last"], "nobody reads the output of unread where everything is computed"),
        (["", "last"], "nobody reads the output of last"),
        (["outer", "outer.missing"], "has no module 'outer.missing'"),
    ],
)
def test_modules_that_are_no_sites_are_refused(sites, message):
    with pytest.raises(DipgoError, match=message):
        trace_graph(Odd(), sites, {"sample": torch.ones(1, 4)})


@pytest.mark.parametrize("inputs", [{}, {"sample": torch.ones(1, 3)}, {"sample": torch.ones(1, 4), "hint": None}])
def test_inputs_that_the_denoiser_cannot_take_are_one_line(inputs):
    with pytest.raises(DipgoError, match="Odd does not run on these inputs: .*; give the inputs of one call") as caught:
        trace_graph(Odd(), ["last"], inputs)
    assert "\n" not in str(caught.value)
