"""How close pictures are to the dense run's pictures of the same noise: PSNR and SSIM, picture by picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike

import numpy as np
import pytorch_msssim
import torch
from torch import Tensor

from benchmarks.quality.pictures import load
from dipgo.errors import DipgoError

_PAIRS = 16  # compared at once, fewer of large pictures: memory does not grow with their number
_PIXELS = _PAIRS * 256 * 256
_SSIM_WINDOW = 11  # side of the Gaussian window in SSIM's definition


def psnr(pictures: Tensor, dense: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each pair in dB, [n], for pictures [n, 3, h, w] in 0..255.

    Infinity has no place in JSON nor in a mean. So the squared error counts as at least that of one channel value that
    is off by one: two identical pictures get 10 log10(255^2 * 3hw) dB (89.0 at 64 x 64), the highest value that two
    different pictures of their size can reach.
    """
    error = (pictures - dense).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(255**2 / error.clamp(min=1 / pictures[0].numel()))


def ssim(pictures: Tensor, dense: Tensor) -> Tensor:
    """Return the structural similarity of each pair, [n], for pictures [n, 3, h, w] in 0..255.

    The window is Gaussian, 11 x 11; the value is the mean over the channels.
    """
    if min(pictures.shape[-2:]) < _SSIM_WINDOW:
        raise DipgoError(f"SSIM needs sides of {_SSIM_WINDOW} pixels or more, not {_size(pictures)}")
    return pytorch_msssim.ssim(pictures, dense, data_range=255, size_average=False, win_size=_SSIM_WINDOW)


def by_pairs(
    metric: Callable[[Tensor, Tensor], Tensor],
    paths: Sequence[str | PathLike],
    dense: Sequence[str | PathLike],
    device: str = "cpu",
) -> np.ndarray:
    """Return `metric` (`psnr` or `ssim`) of each picture and the dense one of its noise, float64 [n].

    All pictures have one size; a `DipgoError` names those that differ. Everything is computed in float64, as SSIM
    subtracts squares of numbers up to 255.
    """
    if len(paths) != len(dense):
        raise DipgoError(f"{len(paths)} pictures against {len(dense)}: pass pairs of the same prompts and noise")
    height, width = load(paths[:1]).shape[-2:]
    chunk = min(_PAIRS, max(1, _PIXELS // (height * width)))
    values = []
    for start in range(0, len(paths), chunk):
        parts = [files[start : start + chunk] for files in (paths, dense)]
        one, other = map(load, parts)
        if one.shape != other.shape:
            raise DipgoError(
                f"sizes must match: {_size(one)} against {_size(other)} pictures "
                f"({parts[0][0]} against {parts[1][0]}); delete the wrong ones and run again"
            )
        values.append(metric(one.to(device).double(), other.to(device).double()).cpu())
    return torch.cat(values).numpy()


def _size(pictures: Tensor) -> str:
    """Return "width x height" of pictures [n, 3, h, w]."""
    return f"{pictures.shape[3]} x {pictures.shape[2]}"
