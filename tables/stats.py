"""Differences with a 95 % interval: over prompts between two runs, over training seeds between rows of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap, ttest_1samp, ttest_ind

from dipgo.errors import DipgoError

RESAMPLES = 10_000
AT_ONCE = 10_000_000  # resampled values in memory, whatever the number of prompts


@dataclass(frozen=True)
class Difference:
    """A mean difference and its 95 % interval [low, high].

    The interval runs over `n` "prompts", training "seeds" or, unpaired, "pictures", as `over` says. `effect` is the
    difference in standard deviations of what it runs over; None where that does not vary or is not known.
    """

    value: float
    low: float
    high: float
    n: int
    effect: float | None
    over: str

    def verdict(self, direction: str = "up") -> str:
        """better, worse, or no difference where the interval includes 0; `direction` is the better end."""
        if self.low <= 0 <= self.high:
            return "no difference"
        return "better" if (self.value > 0) == (direction == "up") else "worse"


def paired_difference(one: Sequence[float], other: Sequence[float], what: str) -> Difference:
    """one - other, per prompt, then the mean: percentile bootstrap over prompts, seeded.

    The effect is the mean over the standard deviation of the paired differences. Raises `DipgoError` that
    names `what` when the two do not hold the same number of prompts.
    """
    if len(one) != len(other):
        raise DipgoError(f"{what}: {len(one)} and {len(other)} samples; a paired difference needs the same prompts")
    differences = np.asarray(one, dtype=float) - np.asarray(other, dtype=float)
    if len(differences) < 2:
        raise DipgoError(f"{what}: an interval needs at least 2 samples")
    # The pairs are resampled together, so resampling their differences is the paired bootstrap.
    interval = bootstrap(
        (differences,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, AT_ONCE // len(differences)),
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    value, sd = float(differences.mean()), float(differences.std(ddof=1))
    effect = value / sd if sd else None
    return Difference(value, float(interval.low), float(interval.high), len(differences), effect, "prompts")


def seed_difference(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """mean(ours) - mean(theirs), where a side holds one value a training seed: t interval, Welch's between two
    sides of several seeds. A side of one run counts as a fixed value; at least one side has several.

    `n` is the number of seeds, the smaller one of two sides; the effect is Cohen's d with the pooled deviation.
    """
    one, other = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)
    one, other = one - other[0], other - other[0]  # so that equal values give exactly 0
    value = float(one.mean() - other.mean())
    counts = [len(side) for side in (one, other) if len(side) > 1]
    squares = sum(float(np.square(side - side.mean()).sum()) for side in (one, other))
    if not squares:
        return Difference(value, value, value, min(counts), None, "seeds")
    fixed = len(counts) == 1
    test = ttest_1samp(one - other, 0) if fixed else ttest_ind(one, other, equal_var=False)
    interval = test.confidence_interval(0.95)
    # Of a fixed side neither squares nor degrees of freedom are left: what is pooled is the other side's own.
    effect = value / (squares / (len(one) + len(other) - 2)) ** 0.5
    return Difference(value, float(interval.low), float(interval.high), min(counts), effect, "seeds")


def unpaired_difference(one: Mapping[str, float], other: Mapping[str, float]) -> Difference:
    """one - other of two cells with an interval each, as if these were independent: the root of the sum of both
    squares. That the pictures of both come from the same prompts and noises makes it wider than it needs to be."""
    value = one["value"] - other["value"]
    half = sum(((cell["high"] - cell["low"]) / 2) ** 2 for cell in (one, other)) ** 0.5
    return Difference(value, value - half, value + half, min(one["n"], other["n"]), None, "pictures")


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % t interval of the mean of at least two values."""
    interval = ttest_1samp(values, 0).confidence_interval(0.95)
    return float(interval.low), float(interval.high)
