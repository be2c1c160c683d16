"""Quality of a run's pictures: every metric of one prompt set, as cells and per-image samples."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.quality import fidelity
from benchmarks.quality.clip_score import ClipJudge, class_similarity
from benchmarks.quality.features import PROTOCOLS, features
from benchmarks.quality.fid import FeatureSet, feature_set, fid, kid
from benchmarks.quality.reference import Reference
from benchmarks.specs.files import write_text
from benchmarks.specs.metrics import DISTANCES, PER_PICTURE, REFERENCED, SHARES, needs_judge
from dipgo.errors import DipgoError, unknown

Cells = dict[str, dict[str, Any]]
Samples = dict[str, list[float]]

COMPARED = {"psnr": fidelity.psnr, "ssim": fidelity.ssim}  # with the dense pictures
CHUNK = 64  # pictures scored before their scores are written


def score(
    paths: Sequence[Path],
    captions: Sequence[str],
    dense: Sequence[Path],
    metrics: Sequence[str],
    judge: ClipJudge | None,
    references: Mapping[str, Reference],
    centroids: Path | None,
    kept: Path,
    device: str = "cpu",
) -> tuple[Cells, Samples]:
    """Score pictures against their captions, the dense pictures of the same noise, and real pictures.

    Of `metrics` only the quality ones are looked at. PSNR and SSIM need other pictures than `paths`, so they
    are left out where `dense` is `paths` itself. For a model that draws classes the captions are class names
    and `centroids` holds a feature of each (see `clip_score.class_similarity`). `references` has an entry for
    each metric of `REFERENCED` that is asked.

    Each picture's scores are kept in the folder `kept`, a JSON a picture of its name, and are not worked out
    again; `kept` belongs to one run and prompt set. Distances between sets are worked out at the end.

    Raises `DipgoError` for what is missing or cannot be read, by name.
    """
    same = list(dense) == list(paths)
    asked = [name for name in PER_PICTURE if name in metrics and not (same and name in COMPARED)]
    _check((len(paths), len(captions), len(dense)), metrics, judge, references, centroids)

    def work(rows: Sequence[int]) -> dict[str, np.ndarray]:
        chunk, others = [paths[row] for row in rows], [dense[row] for row in rows]
        columns = {name: compare(chunk, others, device) for name, compare in COMPARED.items() if name in asked}
        return columns | (_judged(chunk, captions, rows, asked, judge, centroids) if needs_judge(asked) else {})

    columns = _resumed(paths, asked, kept, work) if asked else {}
    n = len(paths)
    cells: Cells = {name: {"value": sum(values) / n, "n": n} for name, values in columns.items()}
    samples = {name: values for name, values in columns.items() if name not in SHARES}
    return cells | _distances(paths, metrics, references, device), samples


def _check(
    counts: tuple[int, ...],
    metrics: Sequence[str],
    judge: ClipJudge | None,
    references: Mapping[str, Reference],
    centroids: Path | None,
) -> None:
    """What is not there is said before anything is scored."""
    if len(set(counts)) != 1 or not counts[0]:
        names = "{} pictures, {} captions and {} dense pictures".format(*counts)
        raise DipgoError(f"{names} to score; pass as many of each, and at least one")
    if needs_judge(metrics) and judge is None:
        raise DipgoError(f"no judge for {', '.join(metrics)}; pass one, or ask for other metrics")
    if centroids is None and not {"class_score", "class_top1"}.isdisjoint(metrics):
        raise DipgoError(f"no class centroids for {', '.join(metrics)}; is this model conditioned on classes?")
    for name in metrics:
        if name.partition("_")[0] in DISTANCES and name not in REFERENCED:
            raise unknown("distance", name, REFERENCED)
        if name in REFERENCED and name not in references:
            raise DipgoError(f"{name} needs real pictures to compare with; pass them as references[{name!r}]")


def _resumed(
    paths: Sequence[Path], asked: Sequence[str], kept: Path, work: Callable[[Sequence[int]], dict[str, np.ndarray]]
) -> Samples:
    """The scores of all pictures by metric; those that `kept` lacks are worked out and kept, chunk by chunk."""
    files = [kept / f"{path.stem}.json" for path in paths]
    scores = [_read(file, asked) for file in files]
    missing = [row for row, found in enumerate(scores) if found is None]
    with tqdm(total=len(missing), desc="scores", unit="image", delay=5, disable=not missing) as progress:
        for start in range(0, len(missing), CHUNK):
            rows = missing[start : start + CHUNK]
            columns = work(rows)
            for place, row in enumerate(rows):
                scores[row] = {name: columns[name][place].item() for name in asked}
                _write(files[row], scores[row], paths[row])
            progress.update(len(rows))
    return {name: [found[name] for found in scores] for name in asked}


def _distances(
    paths: Sequence[Path], metrics: Sequence[str], references: Mapping[str, Reference], device: str
) -> Cells:
    """Distances of the whole set to real pictures; each network sees the set once."""
    cells: Cells = {}
    seen: dict[tuple[str, Path | None], FeatureSet] = {}
    for name in metrics:
        if name in REFERENCED:
            distance, _, protocol = name.partition("_")
            reference = references[name]
            real = reference.load(PROTOCOLS[protocol], device)
            key = protocol, reference.network
            if key not in seen:
                values = features(paths, PROTOCOLS[protocol], reference.network, device=device, progress=False)
                seen[key] = feature_set(values)
            found = {"value": fid(seen[key], real)} if distance == "fid" else kid(seen[key], real)._asdict()
            cells[name] = {**found, "n": len(paths)}
    return cells


def _judged(
    paths: Sequence[Path],
    captions: Sequence[str],
    rows: Sequence[int],
    asked: Sequence[str],
    judge: ClipJudge,
    centroids: Path | None,
) -> dict[str, np.ndarray]:
    """What the judge says of the pictures of captions[rows]."""
    images, own = judge.image_features(paths, progress=False), [captions[row] for row in rows]
    if not {"clip_score", "retrieval_top1"}.isdisjoint(asked):
        judge.text_features(captions)  # in the same batches, whichever pictures are missing
    columns: dict[str, np.ndarray] = {}
    if "clip_score" in asked:
        columns["clip_score"] = judge.scores(images, own)
    if "retrieval_top1" in asked:
        columns["retrieval_top1"] = judge.retrieval(images, captions, rows)
    if not {"class_score", "class_top1"}.isdisjoint(asked):
        cosines, columns["class_top1"] = class_similarity(images, own, centroids)
        columns["class_score"] = 100 * cosines
    return columns


def _read(path: Path, asked: Sequence[str]) -> dict[str, float] | None:
    """A picture's kept scores; None where one is missing. A power cut may leave half a file: that is none, too."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: found[name] for name in asked}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, scores: Mapping[str, float], picture: Path) -> None:
    for name, value in scores.items():
        if not math.isfinite(value):
            raise DipgoError(f"{picture}: its {name} is {value}; look at the picture and at the judge's weights")
    write_text(path, json.dumps(scores) + "\n", sync=False)
