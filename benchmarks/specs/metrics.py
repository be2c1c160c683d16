"""Every metric, one record each. No torch: a record names the function that works the metric out.

Whatever lists metrics derives its list from `METRICS`: which names a suite may ask for, what is scored and how, what
that takes, which runs are too small, what drift tolerates, and how a table shows a value. A new metric is one record
here and, if a table shows it, one title in `tables/columns.toml`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

from dipgo.errors import unknown
from dipgo.registry import Registry

AMONG = 100
"""Captions among which `retrieval_top1` ranks a picture's own."""
JUDGE, DENSE, CONVERGED, REAL, CENTROIDS = "judge", "dense", "converged", "real", "centroids"
"""What a metric may take besides pictures and captions: fields of `benchmarks.quality.score.Inputs`."""

EFFLITE0, CLEAN, PAPER = "efflite0", "clean", "paper"
"""The protocols of `benchmarks.quality.features`, in which sets of pictures are compared."""


@dataclass(frozen=True)
class Metric:
    """One number that a record may hold."""

    name: str
    """The name of its cell in a record and of its column in a table."""
    unit: str = ""
    """The unit of its values. "share" is a number from 0 to 1."""
    direction: str = ""
    """The better end, "up" or "down"; empty where no end is better."""
    digits: int = 2
    """Digits behind the point that a table shows."""
    group: str | None = None
    """The name by which a suite asks for it together with others; None: by its own name; empty: it comes unasked."""
    function: str = ""
    """"module:name" of the function that scores pictures; empty for what no prompt set's pictures are scored for.

    The function of a single picture's metric takes a `benchmarks.quality.score.Batch` and returns a value a picture,
    [n]. The function of a distance between sets takes the `benchmarks.quality.fid.FeatureSet` of the pictures and that
    of the real ones, and returns a number or a `Kid`.
    """
    inputs: frozenset[str] = frozenset()
    """What the function takes besides pictures and captions: some of `JUDGE`, `DENSE`, `CONVERGED`, `REAL` and
    `CENTROIDS`."""
    protocol: str = ""
    """The name of the protocol (see `benchmarks.quality.features`) that a distance between sets is measured in; empty
    for a metric of single pictures."""
    least_pictures: int = 1
    """The fewest pictures that it can be worked out on."""
    least_captions: int = 1
    """The fewest different captions that it can be worked out on."""
    tolerance: float = 0.0
    """The relative change between two runs of one setting that MLPerf Inference, text to image, allows: 0.2 % of a CLIP
    score, 2 % of an FID. 0 where it names none."""

    @property
    def asked_as(self) -> str:
        """The name by which a suite asks for the metric; empty where it comes unasked."""
        return self.name if self.group is None else self.group

    @property
    def compute(self) -> Callable[..., Any]:
        """The function that scores pictures. Its module is imported here and not before."""
        return resolve_name(self.function)

    def too_few(self, captions: Sequence[str]) -> str:
        """Return why the metric cannot be worked out on the pictures of these captions; empty where it can."""
        for count, least, what in (
            (len(captions), self.least_pictures, "pictures"),
            (len(set(captions)), self.least_captions, "different captions"),
        ):
            if count < least:
                return f"takes {least} {what} or more, not {count}; raise the limit"
        return ""


def _judged(name: str, *inputs: str, **fields: Any) -> Metric:
    """Return the record of a metric of single pictures that the judge gives."""
    function = f"benchmarks.quality.score:Batch.{name}"
    return Metric(name, direction="up", function=function, inputs=frozenset({JUDGE, *inputs}), **fields)


def _fidelity(name: str, to: str = DENSE, **fields: Any) -> Metric:
    """Return the record of a metric that compares single pictures with another run's of the same noise."""
    function = f"benchmarks.quality.score:Batch.{name}"
    return Metric(name, direction="up", function=function, inputs=frozenset({to}), **fields)


def _distance(name: str, protocol: str, **fields: Any) -> Metric:
    """Return the record of a distance of the whole set to real pictures."""
    function = f"benchmarks.quality.fid:{name}"
    inputs = frozenset({REAL})
    return Metric(f"{name}_{protocol}", direction="down", function=function, inputs=inputs, protocol=protocol, **fields)


_RECORDS = (
    Metric("macs_paper", "MACs", group="macs"),
    Metric("macs_full", "MACs", group="macs"),
    Metric("pruned_ratio", "share", group="macs"),
    Metric("step_skip_share", "share", group="macs"),
    Metric("computed_calls", digits=0, group="macs"),
    Metric("seconds_denoiser", "s", group="latency"),
    Metric("seconds_end_to_end", "s", group="latency"),
    Metric("speedup_denoiser", direction="up", group="latency"),
    Metric("speedup_end_to_end", direction="up", group="latency"),
    Metric("fitness", direction="down", digits=4, group="search"),
    Metric("search_seconds", "s", "down", group="search"),
    Metric("evaluations", digits=0, group="search"),
    Metric("evaluations_per_second", group="search"),
    Metric("speedup_over_plain_loop", direction="up", group="search"),
    Metric("speedup_over_loop_keeping_dense", direction="up", group="search"),
    Metric("training_seconds", "s", digits=0, group=""),
    Metric("training_peak_memory", "bytes", group=""),
    _judged("clip_score", tolerance=0.002),
    _judged("retrieval_top1", unit="share", least_captions=AMONG),
    _judged("class_score", CENTROIDS),
    _judged("class_top1", CENTROIDS, unit="share"),
    _fidelity("psnr", unit="dB"),
    _fidelity("ssim", digits=3),
    _fidelity("psnr_converged", CONVERGED, unit="dB"),
    _distance("fid", EFFLITE0, least_pictures=2, tolerance=0.02),
    _distance("kid", EFFLITE0, least_pictures=4),  # its interval halves the pictures
    _distance("fid", CLEAN, least_pictures=2, tolerance=0.02),
    _distance("fid", PAPER, least_pictures=2, tolerance=0.02),
)
METRICS: Registry[Metric] = Registry("metric", [(metric.name, metric) for metric in _RECORDS])
"""All metrics by name."""


def asked() -> list[str]:
    """Return the names that a suite may ask for."""
    return list(dict.fromkeys(metric.asked_as for metric in METRICS.values() if metric.asked_as))


def scored(names: Collection[str]) -> list[Metric]:
    """Return those of the named metrics that pictures are scored by.

    names: what a suite asks for. Raises a `DipgoError` for any other name.
    """
    for name in names:
        if name not in asked():
            raise unknown("metric", name, asked())
    return [metric for name in names if (metric := METRICS.get(name)) and metric.function]


def takes(names: Collection[str]) -> frozenset[str]:
    """Return what scoring by the named metrics takes besides pictures and captions."""
    return frozenset().union(*(metric.inputs for metric in scored(names)))


def lost(
    names: Collection[str],
    cells: Collection[str],
    explained: Collection[str],
    *,
    dense: bool,
    converged: bool = False,
) -> list[str]:
    """Return the asked names of which no metric was measured and no reason says why.

    names: what a suite asked for.
    cells: the names of the metrics that were measured.
    explained: the names that a reason is given for.
    dense: whether the run is its own dense run, which is not compared with itself.
    converged: the same of the converged run.
    """
    missing, without = [], {kind for kind, itself in ((DENSE, dense), (CONVERGED, converged)) if itself}
    for name in dict.fromkeys(names):
        members = [metric for metric in METRICS.values() if metric.asked_as == name]
        itself = all(metric.inputs & without for metric in members)
        if not itself and name not in explained and not any(metric.name in cells for metric in members):
            missing.append(name)
    return missing
