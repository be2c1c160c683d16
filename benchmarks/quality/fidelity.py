"""How close pictures are to the dense run's pictures of the same noise: PSNR and SSIM, image by image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike

import numpy as np
import pytorch_msssim
import torch
from PIL import Image
from torch import Tensor

from dipgo.errors import DipgoError

Pictures = Tensor | Sequence[str | PathLike]
"""uint8 [n, 3, h, w], or the paths of n pictures of one size."""

_CHUNK = 16  # pairs compared at a time, fewer of large pictures: memory does not grow with n
_CHUNK_PIXELS = _CHUNK * 256 * 256
_SSIM_WINDOW = 11  # side of the Gaussian window in SSIM's definition


def read(path: str | PathLike) -> Image.Image:
    """One picture as RGB; `DipgoError` names a file that is missing or is not a whole picture."""
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, SyntaxError) as error:  # PIL raises SyntaxError for some broken PNG files
        raise DipgoError(f"cannot read picture {path}: {error}; delete it and generate it again") from error


def load(paths: Sequence[str | PathLike]) -> Tensor:
    """Pictures of one size as uint8 [n, 3, h, w]; `DipgoError` names one that cannot be read or differs."""
    if not paths:
        raise DipgoError("no pictures given; pass at least one path")
    arrays = [np.asarray(read(path)) for path in paths]
    for path, array in zip(paths, arrays, strict=True):
        if array.shape != arrays[0].shape:
            raise DipgoError(f"picture {path} is {_size(array)}, but {paths[0]} is {_size(arrays[0])}")
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def psnr(a: Pictures, b: Pictures, device: str = "cpu") -> np.ndarray:
    """Peak signal-to-noise ratio of each pair in dB, peak 255: float64 [n].

    Infinity has no place in JSON nor in a mean, so the squared error counts as at least that of one channel
    value off by one: two identical pictures get 10 log10(255^2 * 3hw) dB (89.0 at 64 x 64), the highest value
    that two different pictures of their size can reach.
    """
    return _pairwise(_psnr, a, b, device)


def ssim(a: Pictures, b: Pictures, device: str = "cpu") -> np.ndarray:
    """Structural similarity of each pair (11 x 11 Gaussian window, range 255, channel mean): float64 [n]."""
    return _pairwise(_ssim, a, b, device)


def _psnr(a: Tensor, b: Tensor) -> Tensor:
    error = (a - b).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(255**2 / error.clamp(min=1 / a[0].numel()))


def _ssim(a: Tensor, b: Tensor) -> Tensor:
    if min(a.shape[-2:]) < _SSIM_WINDOW:
        raise DipgoError(f"SSIM needs sides of {_SSIM_WINDOW} pixels or more, not {_size(a[0, 0])}")
    return pytorch_msssim.ssim(a, b, data_range=255, size_average=False, win_size=_SSIM_WINDOW)


def _pairwise(metric: Callable[[Tensor, Tensor], Tensor], a: Pictures, b: Pictures, device: str) -> np.ndarray:
    """A metric over pairs in chunks. In float64: SSIM subtracts squares of numbers up to 255."""
    if len(a) != len(b):
        raise DipgoError(f"{len(a)} pictures against {len(b)}: pass pairs of the same prompts and noise")
    if not len(a):
        raise DipgoError("no pictures given; pass at least one pair")
    height, width = _tensor(a[:1]).shape[-2:]
    chunk = min(_CHUNK, max(1, _CHUNK_PIXELS // (height * width)))
    values = []
    for start in range(0, len(a), chunk):
        parts = a[start : start + chunk], b[start : start + chunk]
        first, second = (_tensor(part) for part in parts)
        if first.shape != second.shape:
            names = "" if isinstance(a, Tensor) else f" ({parts[0][0]} against {parts[1][0]})"
            sizes = f"{_size(first[0, 0])} against {_size(second[0, 0])}"
            raise DipgoError(f"sizes must match: {sizes} pictures{names}; delete the wrong ones and run again")
        values.append(metric(first.to(device), second.to(device)).cpu())
    return torch.cat(values).numpy()


def _tensor(pictures: Pictures) -> Tensor:
    if not isinstance(pictures, Tensor):
        pictures = load(pictures)
    if pictures.dtype != torch.uint8 or pictures.ndim != 4:
        raise DipgoError(f"pictures must be uint8 [n, 3, h, w], not {pictures.dtype} {list(pictures.shape)}")
    return pictures.double()


def _size(array: np.ndarray | Tensor) -> str:
    """Width x height of an array that starts with [h, w]."""
    return f"{array.shape[1]} x {array.shape[0]}"
