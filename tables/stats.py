"""Computes differences with a 95 % interval, which runs over prompts or over training seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap, ttest_1samp, ttest_ind

from dipgo.errors import DipgoError

RESAMPLES = 10_000
AT_ONCE = 10_000_000  # so many resampled values are in memory at a time


@dataclass(frozen=True)
class Difference:
    """A mean difference and its 95 % interval [low, high]."""

    value: float
    low: float
    high: float
    n: int
    """The number of observations that the interval runs over."""
    effect: float | None
    """The difference in standard deviations of the observations; None if these do not vary or are not known."""
    over: str
    """What the observations are: "prompts", training "seeds" or, if unpaired, "pictures"."""

    def verdict(self, direction: str = "up") -> str:
        """Return "no difference" if the interval includes 0, else "better" or "worse".

        direction: the better end of the metric, "up" or "down".
        """
        if self.low <= 0 <= self.high:
            return "no difference"
        return "better" if (self.value > 0) == (direction == "up") else "worse"


def paired_difference(ours: Sequence[float], theirs: Sequence[float], what: str) -> Difference:
    """Return the mean of ours - theirs over prompts, with a percentile bootstrap over prompts, which is seeded.

    The effect is the mean of the paired differences divided by their standard deviation.

    ours, theirs: one value a prompt, in the same order.
    what: the name of the comparison in errors.

    Raises `DipgoError` if the two differ in length or have fewer than 2 values.
    """
    if len(ours) != len(theirs):
        raise DipgoError(f"{what}: {len(ours)} and {len(theirs)} samples; a paired difference needs the same prompts")
    differences = np.asarray(ours, dtype=float) - np.asarray(theirs, dtype=float)
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
    """Return the difference mean(ours) - mean(theirs) with a t interval over training seeds.

    Each side holds one value a seed, and at least one side holds several. Between two sides of several seeds the
    interval is Welch's; a side of one value counts as fixed. `n` is the number of seeds, or the smaller of the two
    numbers. The effect is Cohen's d with the pooled deviation.
    """
    ours, theirs = (np.asarray(side, dtype=float) - theirs[0] for side in (ours, theirs))  # equal values give exactly 0
    value = float(ours.mean() - theirs.mean())
    counts = [len(side) for side in (ours, theirs) if len(side) > 1]
    squares = sum(float(np.square(side - side.mean()).sum()) for side in (ours, theirs))
    if not squares:
        return Difference(value, value, value, min(counts), None, "seeds")
    one_fixed = len(counts) == 1
    test = ttest_1samp(ours - theirs, 0) if one_fixed else ttest_ind(ours, theirs, equal_var=False)
    interval = test.confidence_interval(0.95)
    # A fixed side adds no squares and no degrees of freedom, so the pooled deviation is that of the varying side.
    effect = value / (squares / (len(ours) + len(theirs) - 2)) ** 0.5
    return Difference(value, float(interval.low), float(interval.high), min(counts), effect, "seeds")


def unpaired_difference(ours: Mapping[str, float], theirs: Mapping[str, float]) -> Difference:
    """Return the difference ours - theirs of two cells that have intervals, which are taken as independent.

    Its half width is the root of the sum of the squared half widths. It is wider than it needs to be, since the
    pictures of both cells come from the same prompts and noises.
    """
    value = ours["value"] - theirs["value"]
    half = sum(((cell["high"] - cell["low"]) / 2) ** 2 for cell in (ours, theirs)) ** 0.5
    return Difference(value, value - half, value + half, min(ours["n"], theirs["n"]), None, "pictures")


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % t interval of the mean of at least two values."""
    interval = ttest_1samp(values, 0).confidence_interval(0.95)
    return float(interval.low), float(interval.high)
