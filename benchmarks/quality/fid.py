"""FID and KID: distances between sets of pictures in the feature space of a named protocol.

`fid_clean` is clean-fid's FID; `fid_paper` is pytorch-fid's against real pictures that are centre-cropped to 512.
`fid_efflite0` and `kid_efflite0` are no FID and no KID in the usual sense, whose features come from Inception v3,
and are never to be compared with published ones. All depend on the number of pictures (FID falls about as 1/n):
compare only values of equal protocol, equal n and equal reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from dipgo.errors import DipgoError

_NORMAL_95 = 1.96

Moments = tuple[np.ndarray, np.ndarray]
"""Mean [d] and covariance [d, d]."""


class Kid(NamedTuple):
    """A KID value (squared MMD, no unit) and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class FeatureSet:
    """Features as float64 [n, d], or their moments alone, with what both distances take from one set, worked out
    once."""

    values: np.ndarray | None
    given: Moments | None = None

    @property
    def width(self) -> int:
        return len(self.moments[0])

    @cached_property
    def moments(self) -> Moments:
        return self.given or (self.values.mean(axis=0), np.cov(self.values, rowvar=False))

    @cached_property
    def within(self) -> float:
        """Mean kernel between its different pictures."""
        return _mean_of_pairs(_kernel(self.values, self.values))


Features = np.ndarray | FeatureSet
"""[n, d], or the set made of it: worth its while where one is compared with many."""


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
    """The Frechet distance of two sets of features, [n, d] and [m, d], computed in float64."""
    values, reference = _pair(values, reference)
    return frechet_distance(*values.moments, *reference.moments)


def kid(
    values: Features, reference: Features, subsets: int = 100, subset_size: int | None = None, seed: int = 0
) -> Kid:
    """The kernel distance of features [n, d] to a reference [m, d]: squared MMD under (x.y / d + 1)^3.

    The value is the unbiased estimate from all features, so it can be a little below 0. The interval is the
    delete-d jackknife's: the estimate is repeated on `subsets` random subsets of s = `subset_size` of the n
    (default: half), and their standard deviation counts sqrt(s / (n - s)) 1.96 times to either side. The
    reference is one fixed set, the same for every row: its choice is not in the interval.
    """
    values, reference = _pair(values, reference)
    if values.values is None or reference.values is None:
        raise DipgoError("KID needs the features of every picture, not their moments; pass a feature file")
    n = len(values.values)
    size = n // 2 if subset_size is None else subset_size
    if subsets < 2 or not 2 <= size < n:
        raise DipgoError(f"KID of {n} pictures takes 2+ subsets of 2 to {n - 1}, not {subsets} of {size}")
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


def feature_set(values: Features) -> FeatureSet:
    """Features [n, d] as a set; `DipgoError` where n < 2 or one is not finite."""
    if isinstance(values, FeatureSet):
        return values
    if values.ndim != 2 or len(values) < 2:
        raise DipgoError(f"features must be [n, d] of at least 2 pictures, not {list(values.shape)}")
    if not np.isfinite(values).all():
        raise DipgoError("features must be finite; a network or a picture gave nan or infinity")
    return FeatureSet(values.astype(np.float64))


def _pair(values: Features, reference: Features) -> tuple[FeatureSet, FeatureSet]:
    pair = feature_set(values), feature_set(reference)
    widths = [each.width for each in pair]
    if widths[0] != widths[1]:
        raise DipgoError(f"features are {widths[0]} wide, their reference {widths[1]}")
    return pair
