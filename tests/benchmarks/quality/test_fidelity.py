from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.quality.fidelity import load, psnr, read, ssim


def pictures(n: int = 3, height: int = 16, width: int = 24, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, height, width), generator=generator, dtype=torch.uint8)


def save(folder: Path, images: torch.Tensor) -> list[Path]:
    paths = [folder / f"{index:03d}.png" for index in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return paths


def test_load_returns_what_was_saved(tmp_path):
    images = pictures()
    assert torch.equal(load(save(tmp_path, images)), images)


def test_psnr_follows_its_definition_per_image():
    a = torch.full((2, 3, 16, 16), 100, dtype=torch.uint8)
    b = a.clone()
    b[0] += 10
    b[1] -= 20
    assert psnr(a, b) == pytest.approx([20 * math.log10(255 / 10), 20 * math.log10(255 / 20)])


def test_identical_pictures_get_the_highest_psnr_that_two_pictures_can_reach():
    a = pictures(1, 64, 64)
    b = a.clone()
    b[0, 1, 2, 3] ^= 1  # one channel value off by one
    assert psnr(a, a) == pytest.approx(psnr(a, b))
    assert psnr(a, a) == pytest.approx(10 * math.log10(255**2 * 3 * 64 * 64))
    b[0, 1, 2, 4] ^= 1
    assert psnr(a, b) < psnr(a, a)


def test_ssim_of_flat_pictures_is_the_luminance_term():
    a = torch.full((1, 3, 16, 16), 100, dtype=torch.uint8)
    b = torch.full((1, 3, 16, 16), 120, dtype=torch.uint8)
    stabiliser = (0.01 * 255) ** 2
    expected = (2 * 100 * 120 + stabiliser) / (100**2 + 120**2 + stabiliser)
    assert ssim(a, b) == pytest.approx([expected])


def test_ssim_is_1_for_equal_and_near_0_for_unrelated_pictures():
    a, b = pictures(seed=0), pictures(seed=1)
    assert ssim(a, a) == pytest.approx([1, 1, 1])
    assert np.abs(ssim(a, b)).max() < 0.2


def test_paths_and_tensors_give_equal_values_whatever_the_chunk(tmp_path, monkeypatch):
    a, b = pictures(seed=0), pictures(seed=1)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    paths = save(tmp_path / "a", a), save(tmp_path / "b", b)
    whole = psnr(a, b), ssim(a, b)
    monkeypatch.setattr("benchmarks.quality.fidelity._CHUNK", 2)
    np.testing.assert_allclose(psnr(*paths), whole[0])
    np.testing.assert_allclose(ssim(*paths), whole[1])


def test_an_unreadable_picture_is_named(tmp_path):
    whole = save(tmp_path, pictures(1, 64, 64))[0]
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole.read_bytes()[:200])
    text = tmp_path / "text.png"
    text.write_text("no picture")
    for path in (cut, text, tmp_path / "missing.png"):
        with pytest.raises(ValueError, match=path.name):
            read(path)


def test_pairs_that_do_not_match_are_refused(tmp_path):
    with pytest.raises(ValueError, match="3 pictures against 2"):
        psnr(pictures(3), pictures(2))
    with pytest.raises(ValueError, match="24 x 16 against 16 x 24"):
        ssim(pictures(), pictures(height=24, width=16))
    with pytest.raises(ValueError, match="uint8"):
        psnr(pictures().float(), pictures().float())
    with pytest.raises(ValueError, match="11 pixels"):
        ssim(pictures(height=8), pictures(height=8))
    with pytest.raises(ValueError, match="no pictures"):
        psnr([], [])
    paths = save(tmp_path, pictures(1)) + [tmp_path / "small.png"]
    Image.new("RGB", (5, 7)).save(paths[-1])
    with pytest.raises(ValueError, match="small.png is 5 x 7"):
        load(paths)
