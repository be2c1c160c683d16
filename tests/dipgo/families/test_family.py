from __future__ import annotations

import copy
import types

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, SlicedAttnProcessor
from torch import nn

from benchmarks.models.compiled import compiled
from dipgo import DipgoError, Schedule, count_costs, gated, trace_graph
from dipgo.families import DIT, SD15
from dipgo.families.family import structure


def cut_a_layer(unet):
    unet.up_blocks[3].attentions[2].transformer_blocks[0].ff = nn.Identity()


def shorten_a_row(unet):
    unet.mid_block.attentions[0].transformer_blocks = unet.mid_block.attentions[0].transformer_blocks[:0]


def widen_a_weight(unet):
    feed = unet.mid_block.attentions[0].transformer_blocks[0].ff.net
    feed[0].proj, feed[2] = nn.Linear(8, 128), nn.Linear(64, 8)


def replace_a_forward(unet):
    layer = unet.mid_block.resnets[0]
    layer.forward = types.MethodType(lambda self, hidden, temb: hidden, layer)


def replace_a_class(unet):
    class Shortened(type(unet.mid_block)):
        def forward(self, hidden_states, temb=None, **others):
            return self.resnets[0](hidden_states, temb)

    unet.mid_block.__class__ = Shortened


def turn_a_setting(unet):
    unet.up_blocks[1].upsamplers[0].use_conv = False
    unet.up_blocks[1].upsamplers[0].forward = types.MethodType(lambda self, hidden, *_: unscaled(hidden), unet)


def unscaled(hidden):
    return nn.functional.interpolate(hidden, scale_factor=2.0)


CHANGES = [cut_a_layer, shorten_a_row, widen_a_weight, replace_a_forward, replace_a_class, turn_a_setting]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_changed_denoiser_is_counted_again(change):
    unet = SD15.tiny()
    sites, probe = SD15.blocks(unet), SD15.probe(unet)
    before = SD15.costs(unet, sites)
    assert SD15.costs(unet, sites) is before
    change(unet)
    after = SD15.costs(unet, sites)
    assert after.full.dense != before.full.dense
    assert after.full.dense == count_costs(unet, trace_graph(unet, sites, probe), probe).full.dense


def test_what_is_no_change_of_the_work_is_not_counted_again(tiny):
    unet = SD15.tiny()
    before = structure(unet)
    graph = SD15.costs(unet, SD15.blocks(unet)).graph
    with torch.no_grad():
        unet.conv_in.weight.add_(1)
    with gated(unet, graph, Schedule.dense(graph.sites, 2)):
        assert structure(unet) == before
    with compiled(unet, backend="eager"):
        assert structure(unet) == before
    assert structure(unet) == before == structure(copy.deepcopy(unet))


def test_processors_and_configurations_are_part_of_the_structure():
    unet = SD15.tiny()
    seen = {structure(unet)}
    for processor in (AttnProcessor(), SlicedAttnProcessor(1), SlicedAttnProcessor(2)):
        unet.set_attn_processor(processor)
        seen.add(structure(unet))
    unet.register_to_config(sample_size=16)
    assert len(seen | {structure(unet)}) == 5


def test_longer_text_and_larger_pictures_are_counted_apart():
    unet = SD15.tiny()
    sites, probe = SD15.blocks(unet), SD15.probe(unet)
    assert probe["encoder_hidden_states"].shape[1] == 77
    short = SD15.costs(unet, sites, {**probe, "encoder_hidden_states": torch.zeros(1, 20, 8)})
    assert short.full.dense < SD15.costs(unet, sites).full.dense
    large = SD15.costs(unet, sites, {**probe, "sample": torch.zeros(1, 4, 16, 16)})
    assert large.full.dense > 3 * SD15.costs(unet, sites).full.dense
    assert large.probe["sample"].shape[-1] == 16


@pytest.mark.parametrize(
    "config",
    [
        {"encoder_hid_dim": 8, "encoder_hid_dim_type": "image_proj"},
        {"class_embed_type": "timestep"},
        {"addition_embed_type": "image", "encoder_hid_dim": 8},
    ],
)
def test_a_denoiser_that_asks_for_more_than_the_probe_gives_is_one_line(config):
    plain = {key: value for key, value in SD15.tiny().config.items() if not key.startswith("_")}
    unet = type(SD15.tiny())(**{**plain, **config}).eval()
    with pytest.raises(DipgoError, match="give the inputs of one call as its pipeline makes it") as caught:
        SD15.costs(unet, SD15.blocks(unet))
    assert "\n" not in str(caught.value) and "does not run on these inputs" in str(caught.value)


def test_the_final_layer_of_dit_borrows_a_part_of_a_block_that_runs_in_any_case():
    dit = DIT.tiny()
    costs = DIT.costs(dit, DIT.blocks(dit)).full
    assert len(set(costs.sites)) == 1 and costs.rest > 0  # the first block costs what the others do
