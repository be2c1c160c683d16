from __future__ import annotations

import json
import warnings
from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from baselines import bk_sdm, method
from dipgo import DipgoError
from dipgo.families import DIT, SD15

WEIGHTS = "diffusion_pytorch_model.safetensors"


def unet(widths: tuple[int, ...] = (8, 8, 16, 16)) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=widths,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=8,
    ).eval()


@pytest.fixture(scope="module")
def full() -> UNet2DConditionModel:
    return unet()


@pytest.fixture(scope="module", params=bk_sdm.VARIANTS)
def variant(request) -> str:
    return request.param


def test_a_variant_runs_and_knows_its_own_shape(full, variant):
    removed = bk_sdm.build(full, variant)
    assert bk_sdm.variant_of(removed) == variant
    out = removed(torch.randn(1, 4, 8, 8), torch.tensor([3]), torch.randn(1, 6, 8)).sample
    assert out.shape == (1, 4, 8, 8) and out.isfinite().all()


def test_down_stages_keep_the_first_layer_and_up_stages_the_outer_two(full, variant):
    removed, shift = bk_sdm.build(full, variant), variant == "tiny"
    assert all(len(block.resnets) == 1 for block in removed.down_blocks)
    assert all(len(block.resnets) == 2 for block in removed.up_blocks)
    assert (removed.mid_block is None) == (variant != "base")
    assert len(removed.down_blocks) == len(removed.up_blocks) == 4 - shift
    for i, block in enumerate(removed.up_blocks):
        for kept, layer in enumerate((0, 2)):
            origin = full.up_blocks[i + shift]
            assert torch.equal(block.resnets[kept].conv1.weight, origin.resnets[layer].conv1.weight)
            if hasattr(block, "attentions"):
                assert torch.equal(block.attentions[kept].proj_in.weight, origin.attentions[layer].proj_in.weight)
    for block, origin in zip(removed.down_blocks, full.down_blocks, strict=False):
        assert torch.equal(block.resnets[0].conv1.weight, origin.resnets[0].conv1.weight)


def test_the_weights_are_copies(full):
    removed = bk_sdm.build(full, "base")
    before = full.conv_in.weight.clone()
    with torch.no_grad():
        removed.conv_in.weight.add_(1)
    assert torch.equal(full.conv_in.weight, before)


@pytest.mark.parametrize(("variant", "millions"), [("base", 579.4), ("small", 482.3), ("tiny", 323.4)])
def test_stable_diffusion_shrinks_to_the_published_sizes(variant, millions):
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # copying weights that have no values
        removed = bk_sdm.build(UNet2DConditionModel(sample_size=64, cross_attention_dim=768), variant)
    assert sum(p.numel() for p in removed.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


def test_a_saved_variant_loads(full, variant, tmp_path):
    removed = bk_sdm.build(full, variant)
    removed.save_pretrained(tmp_path / "unet")
    loaded = bk_sdm.load(tmp_path)
    assert loaded.dtype == torch.float32
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in removed.state_dict().items())


def test_other_checkpoints_are_refused_by_one_line(full, tmp_path):
    full.save_pretrained(tmp_path / "full" / "unet")
    DIT.tiny().save_pretrained(tmp_path / "dit" / "transformer")
    DIT.tiny().save_pretrained(tmp_path / "misplaced" / "unet")
    bk_sdm.build(full, "small").save_pretrained(tmp_path / "pickle" / "unet", safe_serialization=False)
    for folder, message in {
        "pickle": "from safetensors: ",
        "full": "2 layers each and a mid block is no BK-SDM shape",
        "dit": "no BK-SDM U-Net in",
        "misplaced": "no BK-SDM U-Net in",
        "nothing": "no BK-SDM U-Net in",
    }.items():
        with pytest.raises(DipgoError, match=message) as caught:
            bk_sdm.load(tmp_path / folder)
        assert "\n" not in str(caught.value), folder


def test_tiny_needs_two_innermost_stages_of_one_width():
    with pytest.raises(DipgoError, match=r"\(8, 16\) channels and must be of one width"):
        bk_sdm.build(unet((8, 8, 8, 16)), "tiny")


def test_building_needs_a_full_unet_and_a_known_variant(full):
    with pytest.raises(DipgoError, match="4 stages with 2 layers each and a mid block"):
        bk_sdm.build(bk_sdm.build(full, "small"), "small")
    with pytest.raises(DipgoError, match="unknown BK-SDM variant 'smal'; did you mean small"):
        bk_sdm.build(full, "smal")


def test_the_plan_is_dense_and_checks_the_models_shape(full):
    def context(denoiser, **params):
        return SimpleNamespace(denoiser=denoiser, params=params, dense=lambda: "dense")

    plan = method("bk_sdm").plan
    assert plan(context(bk_sdm.build(full, "small"), variant="small")) == "dense"
    with pytest.raises(DipgoError, match="asks for BK-SDM base but its model is of BK-SDM small's shape"):
        plan(context(bk_sdm.build(full, "small"), variant="base"))
    with pytest.raises(DipgoError, match="no BK-SDM shape"):
        plan(context(SD15.tiny(), variant="base"))
    with pytest.raises(DipgoError, match="DiTTransformer2DModel is no BK-SDM checkpoint"):
        plan(context(DIT.tiny(), variant="base"))


def drop(*names):
    return lambda weights: [weights.pop(name) for name in list(weights) if name.startswith(names)]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop("conv_in.weight"), "missing weights: conv_in.weight;"),
        (drop("up_blocks.1.resnets"), "missing weights: up_blocks.1.resnets.0.conv1.bias, .* and 21 more"),
        (lambda weights: weights.update(odd=torch.ones(1)), "unexpected weights: odd;"),
        (lambda weights: weights.update({"conv_in.weight": torch.ones(3, 4, 3, 3)}), "no BK-SDM U-Net in .*conv_in"),
    ],
)
def test_weights_that_are_not_the_unets_are_refused(full, tmp_path, capfd, damage, message):
    bk_sdm.build(full, "small").save_pretrained(tmp_path / "unet")
    file = tmp_path / "unet" / WEIGHTS
    weights = load_file(file)
    damage(weights)
    save_file(weights, file)
    refused(tmp_path, message)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (f"{WEIGHTS}.index.json", json.dumps({"metadata": {}, "weight_map": {}}), "missing weights"),
        (f"{WEIGHTS}.index.json", "", "no BK-SDM U-Net in"),
        (WEIGHTS, "", "no BK-SDM U-Net in"),
        ("config.json", "{", "no BK-SDM U-Net in"),
    ],
)
def test_damaged_files_are_refused(full, tmp_path, name, content, message):
    bk_sdm.build(full, "small").save_pretrained(tmp_path / "unet")
    (tmp_path / "unet" / name).write_text(content)
    refused(tmp_path, message)


def test_pickled_weights_are_refused(full, tmp_path):
    bk_sdm.build(full, "small").save_pretrained(tmp_path / "unet", safe_serialization=False)
    refused(tmp_path, "no BK-SDM U-Net in .* with safetensors weights")


def refused(folder, message):
    with pytest.raises(DipgoError, match=message) as caught:
        bk_sdm.load(folder)
    assert "\n" not in str(caught.value)
