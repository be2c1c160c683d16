"""FID and KID: distances between sets of pictures, in the features of a named protocol.

`fid_clean` is clean-fid's FID. `fid_paper` is pytorch-fid's against real pictures that are centre-cropped to 512.
`fid_efflite0` and `kid_efflite0` take the features of another network than Inception v3, and so must never be compared
with published values. All depend on the number of pictures (FID falls about as 1/n). Two values can be compared where
protocol, number of pictures and real pictures are the same.

The distances are computed here because clean-fid's do not serve. Its Frechet distance calls `scipy.linalg.sqrtm` with
an argument that SciPy 1.18 no longer has. Its kernel distance draws from NumPy's global generator and has no interval.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from dipgo.errors import DipgoError

_NORMAL_95 = 1.96
_SUBSETS = 100  # of a KID's jackknife

Moments = tuple[np.ndarray, np.ndarray]
"""Mean [d] and covariance [d, d]."""


class Kid(NamedTuple):
    """A KID (squared MMD, without a unit) and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class FeatureSet:
    """The features of a set of pictures, with what every distance to it needs, which is worked out once."""

    values: np.ndarray | None
    """Features, float64 [n, d]; None where only the moments are known."""
    given: Moments | None = None
    """The moments where the features are not known."""

    @property
    def width(self) -> int:
        """The number d of features of a picture."""
        return len(self.moments[0])

    @cached_property
    def moments(self) -> Moments:
        return self.given or (self.values.mean(axis=0), np.cov(self.values, rowvar=False))

    @cached_property
    def root(self) -> np.ndarray:
        """A matrix r with r^T r = covariance, of min(n, d) rows: few pictures make a small root."""
        if self.values is not None and len(self.values) < self.width:
            return (self.values - self.values.mean(axis=0)) / np.sqrt(len(self.values) - 1)
        values, vectors = np.linalg.eigh(self.moments[1])
        return (vectors * np.sqrt(values.clip(min=0))).T

    @cached_property
    def within(self) -> float:
        """The mean kernel of two different pictures of the set."""
        return _mean_of_pairs(_kernel(self.values, self.values))


def feature_set(values: np.ndarray) -> FeatureSet:
    """Return the set of features [n, d]. Raises a `DipgoError` where n is below 2 or a value is not finite."""
    if values.ndim != 2 or len(values) < 2:
        raise DipgoError(f"features must be [n, d] of at least 2 pictures, not {list(values.shape)}")
    if not np.isfinite(values).all():
        raise DipgoError("features must be finite; a network or a picture gave nan or infinity")
    return FeatureSet(values.astype(np.float64))


def fid(pictures: FeatureSet, real: FeatureSet) -> float:
    """Return the Frechet distance of two sets, in float64: |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)).

    The root of the product has the trace of (r C2 r^T)^(1/2) for any matrix r with r^T r = C1. That is the root of a
    symmetric matrix, so symmetric eigendecompositions suffice, and a covariance of deficient rank is no special case.
    """
    _check_widths(pictures, real)
    root = pictures.root
    (mean1, _), (mean2, cov2) = pictures.moments, real.moments
    trace = np.sqrt(np.linalg.eigvalsh(root @ cov2 @ root.T).clip(min=0)).sum()
    distance = np.square(mean1 - mean2).sum() + np.square(root).sum() + np.trace(cov2) - 2 * trace
    return float(max(distance, 0.0))  # rounding may leave equal Gaussians a little below 0


def kid(pictures: FeatureSet, real: FeatureSet) -> Kid:
    """Return the kernel distance of pictures to real ones: the squared MMD under the kernel (x.y / d + 1)^3.

    The value is the unbiased estimate from all features, so it can be a little below 0. The interval is the delete-d
    jackknife's: the estimate is repeated on 100 random subsets of s, half of the n pictures, and reaches 1.96
    sqrt(s / (n - s)) of their standard deviations to either side. The real pictures are one fixed set, the same for
    every row; the interval does not cover their choice.
    """
    _check_widths(pictures, real)
    if pictures.values is None or real.values is None:
        raise DipgoError("KID needs the features of every picture, not their moments; pass a feature file")
    n = len(pictures.values)
    size = n // 2
    if size < 2:
        raise DipgoError(f"KID takes 4 pictures or more, not {n}")
    within = _kernel(pictures.values, pictures.values)
    between = _kernel(pictures.values, real.values).mean(axis=1)

    def estimate(chosen: np.ndarray) -> float:
        return float(_mean_of_pairs(within[np.ix_(chosen, chosen)]) + real.within - 2 * between[chosen].mean())

    random = np.random.default_rng(0)
    spread = np.std([estimate(random.choice(n, size, replace=False)) for _ in range(_SUBSETS)], ddof=1)
    value = estimate(np.arange(n))
    half = float(_NORMAL_95 * spread * np.sqrt(size / (n - size)))
    return Kid(value, value - half, value + half)


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    base = x @ y.T
    base /= x.shape[1]
    base += 1
    return base * base * base  # numpy's ** 3 is many times slower


def _mean_of_pairs(kernel: np.ndarray) -> float:
    """Return the mean over pairs of different pictures: the diagonal would bias the estimate."""
    n = len(kernel)
    return (kernel.sum() - np.trace(kernel)) / (n * (n - 1))


def _check_widths(pictures: FeatureSet, real: FeatureSet) -> None:
    if pictures.width != real.width:
        raise DipgoError(f"features are {pictures.width} wide, those of the real pictures {real.width}")
