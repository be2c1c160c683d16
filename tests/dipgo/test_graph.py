from __future__ import annotations

import numpy as np
import pytest
from diffusers import UNet2DConditionModel

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
