"""Says what has moved since the baseline: changes on paired pictures with intervals, against limits from noise."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from scipy.stats import bootstrap

from benchmarks.drift.baseline import Baseline
from benchmarks.drift.cases import BATCH, CASES, Outcome, outcome
from dipgo.errors import DipgoError

PIXELS = "pixels"
"""The name of the first change of a case: the root mean square difference of its pictures, in grey levels of 255."""
STORED = ", stored"
"""The ending of a case's name where its stored pictures are scored, and none are drawn."""
RESAMPLES = 2000
EXACT = 1e-9
"""The relative difference of a fact that is only the order of a sum."""

Limits = Mapping[str, Mapping[str, float]]
"""By case and metric: the most that any end of a change's interval may lie from 0."""


@dataclass(frozen=True)
class Finding:
    """One metric of one case against the baseline."""

    case: str
    metric: str
    change: float
    """The mean over pictures of the new value minus the old one; of `pixels` the difference itself."""
    low: float
    high: float
    """The ends of the change's 95 % interval over pictures; equal to the change where the set has one value."""
    limit: float = math.nan

    @property
    def size(self) -> float:
        """How far the interval reaches from 0."""
        return max(-self.low, self.high)

    @property
    def drifted(self) -> bool:
        return not self.size <= self.limit  # a NaN has drifted

    def __str__(self) -> str:
        change = f"{self.change:+.3g} [{self.low:+.3g}, {self.high:+.3g}]"
        return f"{self.case:<20} {self.metric:<14} {change:<34} within +-{self.limit:<10.2g} " + (
            "DRIFT" if self.drifted else "ok"
        )


def check(baseline: Baseline, names: Collection[str] = tuple(CASES)) -> list[Finding]:
    """Draw and score the cases in `names` again and compare them with the baseline and its limits."""
    for name in names:
        if name not in baseline.outcomes:
            raise DipgoError(f"the drift baseline has no case {name!r}; renew it with --update --reason TEXT")
    return [
        replace(finding, limit=baseline.limits[finding.case].get(finding.metric, 0.0))
        for finding in changes(baseline, names)
    ]


def changes(baseline: Baseline, names: Collection[str] = tuple(CASES), batch: int = BATCH) -> Iterator[Finding]:
    """What has changed by how much, without limits, case by case.

    The stored pictures of a case are scored as well, so that a change of the scores alone is told from one of the
    pictures.
    """
    with TemporaryDirectory() as temporary:
        stored, drawn = Path(temporary) / "stored", Path(temporary) / "drawn"
        baseline.unpack(stored)
        for name in names:
            case, old, schedule = CASES[name], baseline.outcomes[name], baseline.schedules.get(name)
            reference = stored / case.reference
            new = outcome(case, schedule, drawn / name, reference if case.reference != name else drawn / name, batch)
            yield from compare(name, new, old)
            yield from compare(name + STORED, outcome(case, schedule, stored / name, reference, batch), old)


def compare(name: str, new: Outcome, old: Outcome) -> Iterator[Finding]:
    """The changes of a case. Raises `DipgoError` where the two do not hold the same metrics."""
    difference = new.pixels.astype(float) - old.pixels.astype(float)
    size = float(np.sqrt(np.square(difference).mean()))
    yield Finding(name, PIXELS, size, size, size)
    for what in ("scores", "distances", "facts"):
        before, after = getattr(old, what), getattr(new, what)
        if before.keys() != after.keys():
            odd = ", ".join(sorted(before.keys() ^ after.keys()))
            raise DipgoError(f"drift case {name!r}: {odd} is not in both sides; renew the baseline with --update")
    for metric, values in new.scores.items():
        change = values - old.scores[metric]
        yield Finding(name, metric, float(change.mean()), *interval_of_mean(change))
    for metric, value in new.distances.items():
        change = value - old.distances[metric]
        yield Finding(name, metric, change, change, change)
    for fact, value in new.facts.items():
        change = _of_fact(old.facts[fact], value)
        yield Finding(name, fact, change, change, change)


def _of_fact(old: float | str, new: float | str) -> float:
    """The relative change of a fact, 0 where only the order of a sum differs; infinity for another text."""
    if isinstance(new, str) or isinstance(old, str):
        return 0.0 if new == old else math.inf
    change = (new - old) / max(abs(old), 1e-30)
    return 0.0 if abs(change) <= EXACT else change


def interval_of_mean(values: np.ndarray) -> tuple[float, float]:
    """The bootstrap's 95 % interval of a mean over pictures; the percentiles hold for values that are all equal."""
    result = bootstrap((values,), np.mean, method="percentile", n_resamples=RESAMPLES, rng=np.random.default_rng(0))
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
