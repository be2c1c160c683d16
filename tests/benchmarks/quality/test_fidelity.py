from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.quality.fidelity import by_pairs, psnr, ssim
from dipgo.errors import DipgoError


def pictures(n: int = 3, height: int = 16, width: int = 24, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, height, width), generator=generator).double()


def save(folder: Path, images: torch.Tensor) -> list[Path]:
    folder.mkdir()
    paths = [folder / f"{index:03d}.png" for index in range(len(images))]
    for path, image in zip(paths, images.byte(), strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return paths


def test_psnr_follows_its_definition_per_image():
    a = torch.full((2, 3, 16, 16), 100.0, dtype=torch.float64)
    b = a.clone()
    b[0] += 10
    b[1] -= 20
    assert psnr(a, b) == pytest.approx([20 * math.log10(255 / 10), 20 * math.log10(255 / 20)])


def test_identical_pictures_get_the_highest_psnr_that_two_pictures_can_reach():
    a = pictures(1, 64, 64)
    b = a.clone()
    b[0, 1, 2, 3] += 1  # one channel value off by one
    assert psnr(a, a) == pytest.approx(psnr(a, b))
    assert psnr(a, a) == pytest.approx(10 * math.log10(255**2 * 3 * 64 * 64))
    b[0, 1, 2, 4] += 1
    assert psnr(a, b) < psnr(a, a)


def test_ssim_of_flat_pictures_is_the_luminance_term():
    a = torch.full((1, 3, 16, 16), 100.0, dtype=torch.float64)
    b = torch.full((1, 3, 16, 16), 120.0, dtype=torch.float64)
    stabiliser = (0.01 * 255) ** 2
    expected = (2 * 100 * 120 + stabiliser) / (100**2 + 120**2 + stabiliser)
    assert ssim(a, b) == pytest.approx([expected])


def test_ssim_is_1_for_equal_and_near_0_for_unrelated_pictures():
    a, b = pictures(seed=0), pictures(seed=1)
    assert ssim(a, a) == pytest.approx([1, 1, 1])
    assert ssim(a, b).abs().max() < 0.2


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_files_give_the_values_of_their_pixels_whatever_the_chunk(tmp_path, monkeypatch, metric):
    a, b = pictures(seed=0), pictures(seed=1)
    paths = save(tmp_path / "a", a), save(tmp_path / "b", b)
    expected = metric(a, b)
    for pairs in (16, 2, 1):
        monkeypatch.setattr("benchmarks.quality.fidelity._PAIRS", pairs)
        np.testing.assert_allclose(by_pairs(metric, *paths), expected)


def test_pairs_that_do_not_match_are_refused(tmp_path):
    three, two = save(tmp_path / "three", pictures(3)), save(tmp_path / "two", pictures(2))
    with pytest.raises(DipgoError, match="3 pictures against 2"):
        by_pairs(psnr, three, two)
    turned = save(tmp_path / "turned", pictures(3, 24, 16))
    with pytest.raises(DipgoError, match="24 x 16 against 16 x 24 .*three/000.png against .*turned/000.png"):
        by_pairs(ssim, three, turned)
    small = save(tmp_path / "small", pictures(3, height=8))
    with pytest.raises(DipgoError, match="11 pixels or more, not 24 x 8"):
        by_pairs(ssim, small, small)
