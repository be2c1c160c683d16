"""Quality of a run's pictures: every metric of one prompt set, as cells and per-image samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import fid, fidelity
from benchmarks.clip_score import ClipJudge, class_similarity

Cells = dict[str, dict[str, Any]]
Samples = dict[str, list[float]]


def score(
    paths: Sequence[Path],
    captions: Sequence[str],
    dense: Sequence[Path],
    metrics: Sequence[str],
    judge: ClipJudge,
    reference: Path,
    centroids: Path,
) -> tuple[Cells, Samples]:
    """Score pictures against their captions, the dense pictures of the same noise, and real pictures' features.

    Of `metrics` only the quality ones are looked at. PSNR and SSIM need other pictures than `paths`, so they
    are left out where `dense` is `paths` itself. For a model that draws classes the captions are class names
    and `centroids` holds a feature of each (see `clip_score.class_similarity`).
    """
    samples: Samples = {}
    shares: dict[str, float] = {}
    if {"clip_score", "retrieval_top1", "class_score", "class_top1"} & set(metrics):
        images = judge.image_features(paths, progress=False)
    if "clip_score" in metrics:
        samples["clip_score"] = judge.scores(images, captions).tolist()
    if "retrieval_top1" in metrics:
        shares["retrieval_top1"] = judge.retrieval(images, captions)
    if {"class_score", "class_top1"} & set(metrics):
        cosines, hits = class_similarity(images, captions, centroids)
        if "class_score" in metrics:
            samples["class_score"] = (100 * cosines).tolist()
        if "class_top1" in metrics:
            shares["class_top1"] = float(hits.mean())
    if list(dense) != list(paths):
        if "psnr" in metrics:
            samples["psnr"] = fidelity.psnr(paths, dense).tolist()
        if "ssim" in metrics:
            samples["ssim"] = fidelity.ssim(paths, dense).tolist()
    means = {name: sum(values) / len(values) for name, values in samples.items()}
    cells: Cells = {name: {"value": value, "n": len(paths)} for name, value in (means | shares).items()}
    if {"fid_efflite0", "kid_efflite0"} & set(metrics):
        features = fid.features(paths, progress=False)
        if "fid_efflite0" in metrics:
            cells["fid_efflite0"] = {"value": fid.fid(features, reference), "n": len(paths)}
        if "kid_efflite0" in metrics:
            cells["kid_efflite0"] = {**fid.kid(features, reference)._asdict(), "n": len(paths)}
    return cells, samples
