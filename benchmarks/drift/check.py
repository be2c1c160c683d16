"""What has moved since the baseline: changes on paired pictures with their intervals, against limits from noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from scipy.stats import bootstrap

from benchmarks.drift import paired_set
from benchmarks.drift.baseline import Baseline
from benchmarks.drift.paired_set import COUNT, FID, KID, PROTOCOL, RUNS, STORED, Scores
from benchmarks.quality import real as real_pictures
from benchmarks.quality.features import PROTOCOLS
from benchmarks.quality.fid import FeatureSet, fid, kid
from benchmarks.specs.run import PROFILES
from benchmarks.supply.profiles import source
from dipgo.errors import DipgoError

LEAST = 6  # pictures: leaving one out leaves enough for KID
RESAMPLES = 2000
GROUPS = 12  # that a jackknife leaves out in turn
NORMAL_95 = 1.96

Interval = tuple[float, float]
Limits = Mapping[str, Mapping[str, float]]
"""By run and metric, for `COUNT` pictures: the most that a change's interval may reach to either side; of PSNR, in dB,
the least."""


@dataclass(frozen=True)
class Finding:
    """One metric of one run: its change since the baseline (of PSNR, the value in dB: that to the baseline's
    pictures), a 95 % interval, and the limit that the whole interval must keep to."""

    run: str
    metric: str
    value: float
    low: float
    high: float
    limit: float = float("nan")

    @property
    def drifted(self) -> bool:
        kept = self.low >= self.limit if self.metric == "psnr" else max(-self.low, self.high) <= self.limit
        return not kept  # so that a NaN has drifted

    def __str__(self) -> str:
        if self.metric == "psnr":
            change, limit = f"{self.value:.1f} [{self.low:.1f}, {self.high:.1f}] dB", f"at least {self.limit:.1f}"
        else:
            change = f"{self.value:+.2g} [{self.low:+.2g}, {self.high:+.2g}]"
            limit = f"within +-{self.limit:.2g}"
        return f"{self.run:<10} {self.metric:<13} {change:<36} {limit:<18} {'DRIFT' if self.drifted else 'ok'}"


def check(
    baseline: Baseline,
    limits: Limits,
    names: Collection[str] = (*RUNS, STORED),
    count: int = COUNT,
    batch: int = paired_set.BATCH,
) -> list[Finding]:
    """Draw and score the first `count` pictures of the runs in `names` again and compare them with the baseline.

    Limits are for `COUNT` pictures. Rounding changes few of them, and each weighs more among fewer.
    """
    if not LEAST <= count <= baseline.count:
        raise DipgoError(f"{count} pictures cannot be compared; pass {LEAST} to {baseline.count}")
    return [
        Finding(each.run, each.metric, each.value, each.low, each.high, limit_at(count, each, limits))
        for each in changes(baseline, names, count, batch)
    ]


def changes(
    baseline: Baseline,
    names: Collection[str] = (*RUNS, STORED),
    count: int = COUNT,
    batch: int = paired_set.BATCH,
) -> list[Finding]:
    """What has changed by how much, without a limit."""
    where = source(PROFILES[0]).real_pictures(PROTOCOL, paired_set.PROMPTS)
    real = real_pictures.load(where, PROTOCOLS[PROTOCOL])
    with TemporaryDirectory() as temporary:
        stored = Path(temporary) / "stored"
        baseline.unpack(stored, count)
        found = paired_set.scores(baseline.schedule, Path(temporary), stored, names, count, batch)
    return [each for name, new in found.items() for each in compare(name, new, baseline.scores[name], real)]


def compare(name: str, new: Scores, old: Scores, real: FeatureSet) -> list[Finding]:
    """The changes of a run's first n pictures, of as many as `new` has. `real`: the features of the real pictures."""
    n = len(new.clip_score)
    change = new.clip_score - old.clip_score[:n]
    findings = [Finding(name, "clip_score", float(change.mean()), *interval_of_mean(change))]
    if new.psnr is not None:
        error = 10 ** (-new.psnr / 10)
        low, high = interval_of_mean(error)
        findings.append(Finding(name, "psnr", *(-10 * math.log10(value) for value in (error.mean(), high, low))))
    whole = n == len(old.clip_score)
    for metric, distance, now, before in ((FID, fid, new.fid, old.fid), (KID, _kid, new.kid, old.kid)):
        value = now - (before if whole else distance(old.features[:n], real))
        half = _half_width(lambda values, distance=distance: distance(values, real), new.features, old.features[:n])
        findings.append(Finding(name, metric, value, value - half, value + half))
    return findings


def limit_at(count: int, finding: Finding, limits: Limits) -> float:
    """The limit of a finding over `count` pictures."""
    limit, weight = limits[finding.run][finding.metric], COUNT / count
    return limit - 10 * math.log10(weight) if finding.metric == "psnr" else limit * weight


def interval_of_mean(values: np.ndarray) -> Interval:
    """The bootstrap's 95 % interval of a mean over pictures; the percentiles hold for values that are all equal."""
    result = bootstrap((values,), np.mean, method="percentile", n_resamples=RESAMPLES, rng=np.random.default_rng(0))
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _kid(values: np.ndarray, real: FeatureSet) -> float:
    return kid(values, real, subsets=2).value  # without an interval of its own


def _half_width(distance: Callable[[np.ndarray], float], new: np.ndarray, old: np.ndarray) -> float:
    """Half the 95 % interval of the change of a distance, by leaving groups of pairs out in turn: to draw pictures
    twice, as the bootstrap does, would bias both distances."""
    groups = np.array_split(np.arange(len(new)), min(len(new), GROUPS))
    values = [distance(np.delete(new, group, axis=0)) - distance(np.delete(old, group, axis=0)) for group in groups]
    return float(NORMAL_95 * np.sqrt((len(groups) - 1) * np.var(values)))
