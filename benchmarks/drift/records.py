"""Two records of one run, for instance before and after an upgrade: which metrics have moved, and by how much."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks.drift.check import interval_of_mean
from benchmarks.specs.metrics import METRICS
from benchmarks.specs.record import ALL, Record
from dipgo.errors import DipgoError

TOLERANCE = 0.002
"""The relative change that metrics of pictures may show, where their records (`Metric.tolerance`) name no other."""
EXACT = 1e-9
"""The relative change that is allowed to what depends on no prompt and no clock, such as MACs."""
TIMED = ("seconds", "speedup", "training", "search", "evaluations")
"""What begins so depends on the machine and is not compared."""


@dataclass(frozen=True)
class Agreement:
    """A metric's relative change from one record to another."""

    dataset: str
    metric: str
    change: float
    tolerance: float
    interval: tuple[float, float] | None
    """The 95 % interval of the change over pairs of pictures, where both records hold a value a picture."""

    @property
    def drifted(self) -> bool:
        """Whether the change exceeds the tolerance, and is no mere spread between pictures: its interval excludes 0."""
        within = abs(self.change) <= self.tolerance
        undecided = self.interval is not None and self.interval[0] <= 0 <= self.interval[1]
        return not (within or undecided)  # a NaN has drifted

    def __str__(self) -> str:
        spread = "no interval" if self.interval is None else "[{:+.2%}, {:+.2%}]".format(*self.interval)
        change, limit = f"{self.change:+.2%} {spread}", f"within +-{self.tolerance:.1%}"
        return f"{self.dataset:<10} {self.metric:<16} {change:<36} {limit:<18} {'DRIFT' if self.drifted else 'ok'}"


def agreements(before: Record, after: Record) -> list[Agreement]:
    """The change of every metric that both records hold and that does not depend on the machine's speed.

    Raises `DipgoError` where a prompt set's counts of pictures differ, or where no metric can be compared.
    """
    found = [_agreement(dataset, metric, before, after) for dataset, metric in _shared(before, after)]
    if not found:
        raise DipgoError(f"{before.file} and {after.file} share no metric to compare; name two records of one run")
    return found


def _shared(before: Record, after: Record) -> Iterator[tuple[str, str]]:
    for dataset in sorted(before.metrics.keys() & after.metrics.keys()):
        cells, others = before.metrics[dataset], after.metrics[dataset]
        for metric in sorted(cells.keys() & others.keys()):
            if metric.startswith(TIMED):
                continue
            counts = [cell[metric].get("n", 0) for cell in (cells, others)]
            if counts[0] != counts[1]:
                raise DipgoError(
                    f"{dataset}.{metric}: {counts[0]} pictures in {before.file}, {counts[1]} in {after.file}; "
                    "compare records of equally many"
                )
            yield dataset, metric


def _agreement(dataset: str, metric: str, before: Record, after: Record) -> Agreement:
    first, second = (float(record.metrics[dataset][metric]["value"]) for record in (before, after))
    scale = abs(first) or 1.0
    samples = [record.samples.get(dataset, {}).get(metric) for record in (before, after)]
    interval = None
    if all(values is not None for values in samples):
        low, high = interval_of_mean(np.subtract(samples[1], samples[0]))
        interval = low / scale, high / scale
    usual = EXACT if dataset == ALL else TOLERANCE
    tolerance = METRICS[metric].tolerance if metric in METRICS else 0.0
    return Agreement(dataset, metric, (second - first) / scale, tolerance or usual, interval)
