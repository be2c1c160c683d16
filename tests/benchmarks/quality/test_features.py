from __future__ import annotations

import subprocess
import sys

import cleanfid.fid
import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import ROOT
from benchmarks.quality.features import CLEAN, EFFLITE0, EFFLITE0_SIZE, PAPER, bilinear, centre, features
from benchmarks.quality.networks import efflite0, efflite0_model
from tests.helpers.inceptions import save_noise


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("reached for the network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


def test_features_come_in_sorted_order_and_do_not_depend_on_the_batch(tmp_path, no_network, monkeypatch):
    paths = save_noise(tmp_path, ["c.png", "a.png", "b.png"])
    (tmp_path / "notes.txt").write_text("not a picture")
    by_folder = features(tmp_path, progress=False)
    assert by_folder.shape == (3, 320) and by_folder.dtype == np.float32
    monkeypatch.setattr("benchmarks.quality.features.BATCH", 2)
    by_list = features(paths, progress=False)
    np.testing.assert_allclose(by_folder, by_list[[1, 2, 0]], atol=1e-4)
    assert np.abs(by_folder[0] - by_folder[1]).max() > 0.1


def test_features_equal_clean_fids_own_folder_features(tmp_path):
    save_noise(tmp_path, ["1.png", "2.png"])
    theirs = cleanfid.fid.get_folder_features(
        str(tmp_path),
        model=efflite0(),
        num_workers=0,
        device=torch.device("cpu"),
        custom_fn_resize=EFFLITE0.resize,
        verbose=False,
    )
    np.testing.assert_allclose(features(tmp_path, progress=False), theirs, atol=1e-4)


def test_features_follow_the_stated_input_and_layer(tmp_path):
    """Read, doubled, (x - 127) / 128, last block, spatial mean: by timm's own feature path."""
    path = save_noise(tmp_path, ["1.png"], size=EFFLITE0_SIZE)[0]
    pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        stages = efflite0_model().forward_intermediates((pixels - 127) / 128, intermediates_only=True)
    last = stages[-1]
    assert last.shape == (1, 320, 4, 4)
    np.testing.assert_allclose(features([path], progress=False), last.mean(dim=(2, 3)), atol=1e-4)


def test_progress_can_be_switched_off(tmp_path, capfd):
    save_noise(tmp_path, ["1.png"])
    features(tmp_path, progress=False)
    assert capfd.readouterr() == ("", "")
    features(tmp_path)
    out, err = capfd.readouterr()
    assert out == "" and "features" in err


def test_an_unreadable_or_missing_picture_is_named(tmp_path):
    with pytest.raises(ValueError, match="no folder of pictures at .*nowhere"):
        features(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="folder .* holds no picture"):
        features(tmp_path)
    with pytest.raises(ValueError, match="list holds no picture"):
        features([])
    good, cut = save_noise(tmp_path, ["1.png", "2.png"])
    cut.write_bytes(cut.read_bytes()[:300])
    with pytest.raises(ValueError, match="cannot read picture .*2.png"):
        features([good, cut], progress=False)


def test_the_papers_resizing_is_pytorch_fids(tmp_path):
    """Bilinear by four neighbours, which clean-fid keeps to compare itself with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.filterwarnings", lambda *_: None)  # clean-fid switches them all off
        theirs = cleanfid.fid.build_resizer("legacy_pytorch")
    pixels = np.random.default_rng(0).integers(0, 256, (70, 50, 3), dtype=np.uint8)
    ours = bilinear(pixels)
    assert ours.shape == (299, 299, 3) and ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs(pixels), atol=1e-3)


@pytest.mark.parametrize("size", [(640, 480), (300, 700), (512, 512)])
def test_real_pictures_are_cropped_to_the_middle_after_their_shorter_side_is_512(size):
    """By PIL alone, of which torchvision's transforms are made."""
    picture = Image.effect_noise(size, 60).convert("RGB")
    scale = 512 / min(size)
    scaled = picture.resize([int(side * scale) for side in size], Image.Resampling.BILINEAR)
    left, top = (round((side - 512) / 2) for side in scaled.size)
    expected = np.asarray(scaled.crop((left, top, left + 512, top + 512)))
    assert np.array_equal(centre(np.asarray(picture)), expected)


def test_only_real_pictures_of_the_papers_protocol_are_cropped(tmp_path, inceptions):
    wide = save_noise(tmp_path, ["wide.png"])[0]
    Image.open(wide).resize((192, 64)).save(wide)
    middle = tmp_path / "middle.png"
    Image.fromarray(centre(np.array(Image.open(wide)))).save(middle)

    def found(protocol, path, real):
        return features([path], protocol, inceptions[protocol.name], real=real, progress=False)

    np.testing.assert_array_equal(found(PAPER, wide, True), found(PAPER, middle, False))
    assert np.abs(found(PAPER, wide, False) - found(PAPER, middle, False)).max() > 1e-3
    np.testing.assert_array_equal(found(CLEAN, wide, True), found(CLEAN, wide, False))


def test_pictures_of_several_sizes_make_one_batch(tmp_path, inceptions):
    paths = save_noise(tmp_path, ["1.png"], 40) + save_noise(tmp_path, ["2.jpg"], 64)
    for protocol in (EFFLITE0, CLEAN, PAPER):
        both = features(paths, protocol, inceptions[protocol.name], progress=False)
        alone = features(paths[1:], protocol, inceptions[protocol.name], progress=False)
        np.testing.assert_allclose(both[1:], alone, rtol=1e-3, atol=1e-3)


def test_a_folder_without_its_network_is_named(tmp_path):
    paths = save_noise(tmp_path, ["1.png"])
    with pytest.raises(ValueError, match="'clean' needs a network; pass the folder of its inception-2015-12-05.pt"):
        features(paths, CLEAN)
    with pytest.raises(ValueError, match="must hold one .*safetensors, not 0"):
        features(paths, PAPER, tmp_path)


def test_the_import_needs_no_network():
    code = (
        "import socket\n"
        "def refuse(*_): raise AssertionError('network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "import benchmarks.quality.features\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
