"""Differences on the same prompts, with a paired-bootstrap interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap

from benchmarks.spec import BenchmarkError

RESAMPLES = 10_000


@dataclass(frozen=True)
class Difference:
    """Mean of the paired differences over `n` prompts, with its 95 % interval [low, high]."""

    value: float
    low: float
    high: float
    n: int

    def verdict(self, direction: str = "up") -> str:
        """better, worse, or no difference where the interval includes 0; `direction` is the better end."""
        if self.low <= 0 <= self.high:
            return "no difference"
        return "better" if (self.value > 0) == (direction == "up") else "worse"


def paired_difference(one: Sequence[float], other: Sequence[float], what: str) -> Difference:
    """one - other, per prompt, then the mean: percentile bootstrap over prompts, seeded.

    Raises `BenchmarkError` that names `what` when the two do not hold the same number of prompts.
    """
    if len(one) != len(other):
        raise BenchmarkError(f"{what}: {len(one)} and {len(other)} samples; a paired difference needs the same prompts")
    differences = np.asarray(one, dtype=float) - np.asarray(other, dtype=float)
    if len(differences) < 2:
        raise BenchmarkError(f"{what}: an interval needs at least 2 samples")
    # The pairs are resampled together, so resampling their differences is the paired bootstrap.
    interval = bootstrap(
        (differences,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return Difference(float(differences.mean()), float(interval.low), float(interval.high), len(differences))
