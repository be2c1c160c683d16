"""Quality of a run's pictures: every metric of one prompt set, as cells and per-image samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import fid, fidelity
from benchmarks.clip_score import ClipJudge

Cells = dict[str, dict[str, Any]]
Samples = dict[str, list[float]]


def score(
    paths: Sequence[Path],
    captions: Sequence[str],
    dense: Sequence[Path],
    metrics: Sequence[str],
    judge: ClipJudge,
    reference: Path,
) -> tuple[Cells, Samples]:
    """Score pictures against their captions, the dense pictures of the same noise, and real pictures' features.

    Of `metrics` only the quality ones are looked at. PSNR and SSIM need other pictures than `paths`, so they
    are left out where `dense` is `paths` itself.
    """
    samples: Samples = {}
    cells: Cells = {}
    if "clip_score" in metrics:
        samples["clip_score"] = judge.scores(paths, captions, progress=False).tolist()
    if list(dense) != list(paths):
        if "psnr" in metrics:
            samples["psnr"] = fidelity.psnr(paths, dense).tolist()
        if "ssim" in metrics:
            samples["ssim"] = fidelity.ssim(paths, dense).tolist()
    for name, values in samples.items():
        cells[name] = {"value": sum(values) / len(values), "n": len(values)}
    if "retrieval_top1" in metrics:
        cells["retrieval_top1"] = {"value": judge.retrieval(paths, captions, progress=False), "n": len(paths)}
    if {"fid_efflite0", "kid_efflite0"} & set(metrics):
        features = fid.features(paths, progress=False)
        if "fid_efflite0" in metrics:
            cells["fid_efflite0"] = {"value": fid.fid(features, reference), "n": len(paths)}
        if "kid_efflite0" in metrics:
            cells["kid_efflite0"] = {**fid.kid(features, reference)._asdict(), "n": len(paths)}
    return cells, samples
