"""What a suite's worker processes do: prepare methods, and make and score pictures."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import perf_counter

from baselines import Plan
from benchmarks.machine.shards import ALONE, Shards, shards
from benchmarks.models import model as models
from benchmarks.models.generate import Pictures, image_paths, noise_seeds
from benchmarks.prepare.kept import preparations
from benchmarks.prepare.studio import RunStudio
from benchmarks.quality import score as quality
from benchmarks.quality.clip_score import ClipJudge
from benchmarks.quality.score import Inputs
from benchmarks.specs.files import write_text
from benchmarks.specs.metrics import JUDGE, scored, takes
from benchmarks.specs.profiles import PROFILES
from benchmarks.specs.run import RunSpec
from benchmarks.supply.profiles import source


@dataclass(frozen=True)
class Task:
    """One prompt set of a run, to be drawn and scored."""

    spec: RunSpec
    plan: Plan
    prompts: str
    folder: Path
    """Takes the pictures and scores."""
    dense: Path
    """Holds the pictures to compare with."""
    batch: int
    """How many pictures are made at once."""
    converged: Path | None = None
    """Holds the converged run's pictures; None where the run is compared with none."""


@cache
def _judge(profile: str) -> ClipJudge:
    own = source(profile)
    return ClipJudge(own.judge(), str(shards().device), expected=own.judge_model)


def captions_of(spec: RunSpec, prompts: str) -> list[str]:
    """Return the captions of a prompt set that a run draws."""
    return source(spec.profile).captions(prompts, spec.model)[: spec.limit]


def unscored(spec: RunSpec) -> dict[str, str]:
    """Return the metrics of a run's pictures that are not worked out, with the reason for each."""
    asked = scored(spec.metrics)
    if reason := PROFILES[spec.profile].unscored:
        return dict.fromkeys([metric.name for metric in asked], reason)
    sets = [captions_of(spec, prompts) for prompts in spec.prompts]
    reasons = {metric.name: max(map(metric.too_few, sets)) for metric in asked}
    return {name: f"{name} {reason}" for name, reason in reasons.items() if reason}


def draw(task: Task, part: slice = slice(None)) -> list[Path]:
    """Make a task's pictures, or a part of them; return the paths of all."""
    spec, captions = task.spec, captions_of(task.spec, task.prompts)
    seeds, title = noise_seeds(spec, len(captions)), f"{spec.id}, {task.prompts}"
    pictures = Pictures(task.folder / task.prompts, captions, seeds, spec.guidance, task.batch, title)
    return pictures.make(models.load(spec), task.plan, part)


def score(task: Task) -> None:
    """Make a task's pictures and score them; the scores are written last, as `<prompt set>.json`."""
    start, spec, own = perf_counter(), task.spec, source(task.spec.profile)
    paths, captions = draw(task), captions_of(spec, task.prompts)
    absent = unscored(spec)
    metrics = [metric for metric in spec.metrics if metric not in absent]
    protocols = {metric.protocol for metric in scored(metrics)} - {""}
    given = Inputs(
        pictures=paths,
        captions=captions,
        converged=image_paths(task.converged / task.prompts, len(captions)) if task.converged else None,
        dense=None if task.dense == task.folder else image_paths(task.dense / task.prompts, len(captions)),
        judge=_judge(spec.profile) if JUDGE in takes(metrics) else None,
        centroids=own.centroids(spec.model),
        real={protocol: own.real_pictures(protocol, task.prompts) for protocol in protocols},
        device=str(shards().device),
    )
    cells, samples = quality.score(given, metrics, task.folder / f"{task.prompts}.scores")
    data = {"metrics": cells, "samples": samples, "seconds": perf_counter() - start}
    write_text(task.folder / f"{task.prompts}.json", json.dumps(data) + "\n")


def prepare(spec: RunSpec, workspace: Path, path: Path, group: Shards = ALONE) -> None:
    """Make what a run's method prepares in the file `path`. It is kept, so that planning the run finds it again."""
    preparation, studio = preparations(spec, workspace)[path], RunStudio(spec, workspace, group=group)
    preparation.make(studio.context())
