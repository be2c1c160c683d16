"""Scores the pictures of one run and prompt set by every metric that was asked for, as cells and samples."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from benchmarks.quality import fidelity, real
from benchmarks.quality.clip_score import ClipJudge, class_similarity
from benchmarks.quality.features import PROTOCOLS, features
from benchmarks.quality.fid import FeatureSet, feature_set
from benchmarks.specs.files import write_text
from benchmarks.specs.metrics import CONVERGED, DENSE, Metric, scored
from benchmarks.specs.real import RealPictures
from dipgo.errors import DipgoError

Cells = dict[str, dict[str, Any]]
Samples = dict[str, list[float]]

CHUNK = 64  # pictures scored before their scores are written


@dataclass(frozen=True)
class Inputs:
    """Pictures and all that their metrics take. `Metric.inputs` names the fields that may be None."""

    pictures: Sequence[Path]
    """The files of n pictures."""
    captions: Sequence[str]
    """The n captions; for a model that draws classes, the names of the classes."""
    dense: Sequence[Path] | None = None
    """The n pictures of the dense run of the same noises; None for the dense run itself."""
    converged: Sequence[Path] | None = None
    """The n pictures of the converged run of the same noises; None for that run itself, or where there is none."""
    judge: ClipJudge | None = None
    """The model that tells how well a picture shows its caption."""
    centroids: Path | None = None
    """The file of the mean feature of each class (see `clip_score.class_similarity`)."""
    real: Mapping[str, RealPictures] | None = None
    """The real pictures, by the protocol in whose features they are compared."""
    device: str = "cpu"

    def check(self, metrics: Sequence[Metric]) -> None:
        """Raise a `DipgoError` for what is missing, before anything is scored."""
        counts = len(self.pictures), len(self.captions), len(self.pictures if self.dense is None else self.dense)
        if len(set(counts)) != 1 or not counts[0]:
            names = "{} pictures, {} captions and {} dense pictures".format(*counts)
            raise DipgoError(f"{names} to score; pass as many of each, and at least one")
        for metric in metrics:
            for name in sorted(metric.inputs):
                if getattr(self, name) is None:
                    raise DipgoError(f"{metric.name} takes {name!r}, which is missing; pass it or drop the metric")
            if metric.protocol and metric.protocol not in self.real:
                raise DipgoError(f"{metric.name} takes real pictures in {metric.protocol!r}; pass them, or drop it")


@dataclass(frozen=True)
class Batch:
    """Some of the pictures, with what several metrics share. Each metric is a method that returns a value a picture."""

    given: Inputs
    rows: Sequence[int]

    @property
    def pictures(self) -> list[Path]:
        return [self.given.pictures[row] for row in self.rows]

    @property
    def captions(self) -> list[str]:
        return [self.given.captions[row] for row in self.rows]

    @property
    def dense(self) -> list[Path]:
        return [self.given.dense[row] for row in self.rows]

    @property
    def converged(self) -> list[Path]:
        return [self.given.converged[row] for row in self.rows]

    @cached_property
    def features(self) -> Tensor:
        """The judge's unit features of the pictures, float32 [n, d]."""
        return self.given.judge.image_features(self.pictures, progress=False)

    @cached_property
    def classes(self) -> tuple[np.ndarray, np.ndarray]:
        """The cosine of each picture with its class's centroid, and whether no other centroid is nearer."""
        return class_similarity(self.features, self.captions, self.given.centroids)

    def clip_score(self) -> np.ndarray:
        self.given.judge.text_features(self.given.captions)  # in the same batches, whichever pictures are missing
        return self.given.judge.scores(self.features, self.captions)

    def retrieval_top1(self) -> np.ndarray:
        self.given.judge.text_features(self.given.captions)
        return self.given.judge.retrieval(self.features, self.given.captions, self.rows)

    def class_score(self) -> np.ndarray:
        return 100 * self.classes[0]

    def class_top1(self) -> np.ndarray:
        return self.classes[1]

    def psnr(self) -> np.ndarray:
        return fidelity.by_pairs(fidelity.psnr, self.pictures, self.dense, self.given.device)

    def psnr_converged(self) -> np.ndarray:
        return fidelity.by_pairs(fidelity.psnr, self.pictures, self.converged, self.given.device)

    def ssim(self) -> np.ndarray:
        return fidelity.by_pairs(fidelity.ssim, self.pictures, self.dense, self.given.device)


def score(given: Inputs, names: Sequence[str], kept: Path) -> tuple[Cells, Samples]:
    """Score pictures by the named metrics; names of metrics that do not score pictures are ignored.

    given: the pictures, and what the metrics take besides. Without dense pictures, whatever compares with them is left
        out: the dense run is not compared with itself.
    names: the metrics (see `benchmarks.specs.metrics`).
    kept: the folder where each picture's scores are kept, one JSON a row. It belongs to one run and prompt set. Scores
        of the same picture, captions and dense picture are not worked out again.

    Returns a cell a metric, and samples: one value a picture, in order, of metrics that are more than a hit or a miss.
    Raises a `DipgoError` that names what is missing or cannot be read.
    """
    without = {name for name in (DENSE, CONVERGED) if getattr(given, name) is None}
    metrics = [metric for metric in scored(names) if not metric.inputs & without]
    given.check(metrics)
    single = [metric for metric in metrics if not metric.protocol]
    samples = _resumed(given, single, kept) if single else {}
    n = len(given.pictures)
    cells: Cells = {name: {"value": sum(values) / n, "n": n} for name, values in samples.items()}
    cells |= _distances(given, [metric for metric in metrics if metric.protocol])
    return cells, {metric.name: samples[metric.name] for metric in single if metric.unit != "share"}


def _resumed(given: Inputs, metrics: Sequence[Metric], kept: Path) -> Samples:
    """Return the scores of all pictures by metric. Those that are not kept are worked out and kept, chunk by chunk."""
    files = [kept / f"{row:05d}.json" for row in range(len(given.pictures))]
    sources = _sources(given)
    scores = [_read(file, source, metrics) for file, source in zip(files, sources, strict=True)]
    missing = [row for row, found in enumerate(scores) if found is None]
    with tqdm(total=len(missing), desc="scores", unit="image", delay=5, disable=not missing) as progress:
        for start in range(0, len(missing), CHUNK):
            batch = Batch(given, missing[start : start + CHUNK])
            columns = {metric.name: metric.compute(batch) for metric in metrics}
            for place, row in enumerate(batch.rows):
                scores[row] = {name: values[place].item() for name, values in columns.items()}
                _check_finite(scores[row], given.pictures[row])
                write_text(files[row], json.dumps({"source": sources[row], **scores[row]}) + "\n", sync=False)
            progress.update(len(batch.rows))
    return {metric.name: [found[metric.name] for found in scores] for metric in metrics}


def _sources(given: Inputs) -> list[str]:
    """Return digests of what each picture's scores depend on: its file, those that it is compared with, its row and all
    captions."""
    captions = json.dumps(list(given.captions)).encode()
    compared = [given.dense or [None] * len(given.pictures), *([given.converged] if given.converged else [])]
    digests = []
    for row, paths in enumerate(zip(given.pictures, *compared, strict=True)):
        digest = hashlib.sha256(f"{row} ".encode() + captions)
        for path in paths:
            try:
                digest.update(hashlib.sha256(path.read_bytes()).digest() if path else b"")
            except OSError as error:
                reason = f"{error.strerror}; delete it and generate it again"
                raise DipgoError(f"cannot read picture {path}: {reason}") from error
        digests.append(digest.hexdigest()[:16])
    return digests


def _read(file: Path, source: str, metrics: Sequence[Metric]) -> dict[str, float] | None:
    """Return a picture's kept scores; None where one is missing, or they are of another source or half a file."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {metric.name: found[metric.name] for metric in metrics} if found["source"] == source else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _check_finite(scores: Mapping[str, float], picture: Path) -> None:
    for name, value in scores.items():
        if not math.isfinite(value):
            raise DipgoError(f"{picture}: its {name} is {value}; look at the picture and at the judge's weights")


def _distances(given: Inputs, metrics: Sequence[Metric]) -> Cells:
    """Return the distances of the whole set to real pictures. Each network sees the set once."""
    cells: Cells = {}
    seen: dict[str, FeatureSet] = {}
    for metric in metrics:
        protocol, source = PROTOCOLS[metric.protocol], given.real[metric.protocol]
        if metric.protocol not in seen:
            values = features(given.pictures, protocol, source.network, device=given.device, progress=False)
            seen[metric.protocol] = feature_set(values)
        found = metric.compute(seen[metric.protocol], real.load(source, protocol, given.device))
        cell = {"value": found} if isinstance(found, float) else found._asdict()
        cells[metric.name] = {**cell, "n": len(given.pictures)}
    return cells
