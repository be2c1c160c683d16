"""What a suite's worker processes do: train pruners, search for schedules, and make and score pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from baselines import Plan, PlanContext, method
from benchmarks.machine.shards import ALONE, Shards, shards
from benchmarks.models import model as models
from benchmarks.models.generate import generate, image_paths, noise_seeds
from benchmarks.prepare import forecasts, training
from benchmarks.prepare.search import fitness_of
from benchmarks.quality import score as quality
from benchmarks.quality.clip_score import ClipJudge
from benchmarks.quality.score import Inputs
from benchmarks.specs.files import write_text
from benchmarks.specs.metrics import JUDGE, scored, takes
from benchmarks.specs.run import RunSpec
from benchmarks.supply.profiles import source
from dipgo import DipgoError, Sampler, Schedule

PRUNERS, SEARCHES, FORECASTS = "pruners", "searches", "forecasts"  # folders of the workspace
PREPARED = {"train", "learn", "search"}  # params of the methods that these are for: their schedules come from pictures
PLAIN_EVALUATIONS = 3  # by which a plain loop is timed


@dataclass(frozen=True)
class Task:
    """One prompt set of a run: `folder` takes its pictures and scores, `dense` holds those to compare with."""

    spec: RunSpec
    plan: Plan
    prompts: str
    folder: Path
    dense: Path
    batch: int


@cache
def _judge(profile: str) -> ClipJudge:
    own = source(profile)
    return ClipJudge(own.judge(), str(shards().device), expected=own.judge_model)


def captions_of(spec: RunSpec, prompts: str) -> list[str]:
    """The captions that a run draws of a prompt set."""
    return source(spec.profile).captions(prompts, spec.model)[: spec.limit]


def unscored(spec: RunSpec) -> dict[str, str]:
    """The metrics of a run's pictures that are not worked out, with the reason."""
    asked = scored(spec.metrics)
    if reason := source(spec.profile).unscored:
        return dict.fromkeys([metric.name for metric in asked], reason)
    sets = [captions_of(spec, prompts) for prompts in spec.prompts]
    reasons = {metric.name: max(map(metric.too_few, sets)) for metric in asked}
    return {name: f"{name} {reason}" for name, reason in reasons.items() if reason}


def draw(task: Task, part: slice = slice(None)) -> list[Path]:
    """Make a task's pictures, or a part of them; the paths of all."""
    spec, captions = task.spec, captions_of(task.spec, task.prompts)
    return generate(
        models.load(spec),
        task.plan,
        captions,
        task.folder / task.prompts,
        seeds=noise_seeds(spec, len(captions)),
        guidance=spec.guidance,
        batch=task.batch,
        title=f"{spec.id}, {task.prompts}",
        part=part,
    )


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
        dense=None if task.dense == task.folder else image_paths(task.dense / task.prompts, len(captions)),
        judge=_judge(spec.profile) if JUDGE in takes(metrics) else None,
        centroids=own.centroids(spec.model),
        real={protocol: own.real_pictures(protocol, task.prompts) for protocol in protocols},
        device=str(shards().device),
    )
    cells, samples = quality.score(given, metrics, task.folder / f"{task.prompts}.scores")
    data = {"metrics": cells, "samples": samples, "seconds": perf_counter() - start}
    write_text(task.folder / f"{task.prompts}.json", json.dumps(data) + "\n")


def context_of(spec: RunSpec, workspace: Path, plan_of: Callable[[str], Plan], group: Shards = ALONE) -> PlanContext:
    """What a run's method gets to see; trainings and searches are kept in the workspace."""
    model = models.load(spec)

    def scores(settings: Mapping[str, Any]) -> np.ndarray:
        return training.train_once(spec, settings, workspace / PRUNERS).scores

    def learned(start: Plan, settings: Mapping[str, Any]) -> Schedule:
        return forecasts.learn_once(spec, start, settings, workspace / FORECASTS).schedule

    return PlanContext(
        denoiser=model.denoiser,
        costs=model.costs,
        sampler=Sampler(spec.scheduler, model.scheduler_config, spec.steps),
        params=spec.params,
        train=scores,
        plan_of=plan_of,
        fitness=fitness_of(spec, workspace / SEARCHES, group),
        learn=learned,
    )


def search(spec: RunSpec, workspace: Path, group: Shards = ALONE) -> None:
    """Search for a run's schedule. What is evaluated is kept, so that planning the run finds it again."""
    context = context_of(spec, workspace, _no_other_run, group)
    group.wait()  # all have read the same journal before it grows
    plan = method(spec.method)(context)
    context.fitness.finish([plan.schedule] * PLAIN_EVALUATIONS)


def forecast(spec: RunSpec, workspace: Path) -> None:
    """Learn a run's forecast. It is kept, so that planning the run finds it again."""
    method(spec.method)(context_of(spec, workspace, _no_other_run))


def _no_other_run(name: str) -> Plan:
    raise DipgoError(f"this method starts from no other run; drop {name!r} from its params")


def train(spec: RunSpec, folder: Path) -> None:
    """Train a run's pruner by its `params["train"]`; whatever is wrong with that costs its own rows only."""
    try:
        training.train_once(spec, spec.params["train"], folder)
    except (ValueError, ArithmeticError, RuntimeError) as error:
        raise DipgoError(f"the pruner's training failed: {error}") from error
