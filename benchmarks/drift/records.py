"""Two records of one run at the paper's size: whether their quality agrees within the tolerances of MLPerf."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from benchmarks.drift.check import Interval, interval_of_mean
from benchmarks.specs.metrics import METRICS
from benchmarks.specs.record import Record
from dipgo.errors import DipgoError

# Relative to the earlier record's value; by the values themselves, not by their intervals.
TOLERANCES = {name: metric.tolerance for name, metric in METRICS.items() if metric.tolerance}
LEAST = 5000  # pictures of COCO, as in MLPerf's task text to image


@dataclass(frozen=True)
class Agreement:
    """A metric's relative change from one record to another and, where both hold a value a picture, the 95 % interval
    of the change over pairs of pictures."""

    dataset: str
    metric: str
    change: float
    tolerance: float
    interval: Interval | None

    @property
    def drifted(self) -> bool:
        return not abs(self.change) <= self.tolerance

    def __str__(self) -> str:
        spread = "no interval" if self.interval is None else "[{:+.2%}, {:+.2%}]".format(*self.interval)
        change, limit = f"{self.change:+.2%} {spread}", f"within +-{self.tolerance:.1%}"
        return f"{self.dataset:<10} {self.metric:<13} {change:<36} {limit:<18} {'DRIFT' if self.drifted else 'ok'}"


def agreements(before: Record, after: Record) -> list[Agreement]:
    """The change of every metric that has a tolerance, over prompt sets of `LEAST` pictures or more.

    Raises `DipgoError` where a set's counts of pictures differ, or no metric can be judged.
    """
    found = []
    for dataset, cells in before.metrics.items():
        for metric in TOLERANCES.keys() & cells.keys() & after.metrics.get(dataset, {}).keys():
            counts = [record.metrics[dataset][metric].get("n", 0) for record in (before, after)]
            if counts[0] != counts[1]:
                raise DipgoError(
                    f"{dataset}.{metric}: {counts[0]} pictures in {before.file}, {counts[1]} in {after.file}; "
                    "compare records of equally many"
                )
            if counts[0] >= LEAST:
                found.append(_agreement(dataset, metric, before, after))
    if not found:
        names = ", ".join(TOLERANCES)
        raise DipgoError(
            f"{before.file} and {after.file} share none of {names} over {LEAST} pictures or more; the tolerances are "
            "for such records of the paper profile"
        )
    return sorted(found, key=lambda each: (each.dataset, each.metric))


def _agreement(dataset: str, metric: str, before: Record, after: Record) -> Agreement:
    first, second = (float(record.metrics[dataset][metric]["value"]) for record in (before, after))
    if first <= 0:
        raise DipgoError(f"{before.file}: {dataset}.{metric} is {first}; a change relative to it has no meaning")
    samples = [_samples(record.samples, dataset, metric) for record in (before, after)]
    interval = None
    if all(values is not None for values in samples):
        low, high = interval_of_mean(samples[1] - samples[0])
        interval = low / first, high / first
    return Agreement(dataset, metric, second / first - 1, TOLERANCES[metric], interval)


def _samples(samples: Mapping[str, Mapping[str, list[float]]], dataset: str, metric: str) -> np.ndarray | None:
    values = samples.get(dataset, {}).get(metric)
    return None if values is None else np.array(values)
