"""Runs of a suite, from specs to records. Whatever is finished is kept by its digest and never done twice."""

from __future__ import annotations

import json
import logging
import multiprocessing
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch

from baselines import Plan, PlanContext, method
from benchmarks import latency, models, quality, record, training
from benchmarks.clip_score import ClipJudge
from benchmarks.generate import generate, image_paths
from benchmarks.provenance import provenance
from benchmarks.record import Record, write_text
from benchmarks.spec import RunSpec, unknown
from benchmarks.zoo import zoo
from dipgo import DipgoError, Sampler

log = logging.getLogger(__name__)
JUDGE = "emoji-clip"
REFERENCE = "reference"
LATENCY_METRICS = ("denoiser", "end_to_end")


@dataclass(frozen=True)
class Task:
    """One prompt set of a run: `folder` takes its pictures and scores, `dense` holds those to compare with."""

    spec: RunSpec
    plan: Plan
    prompts: str
    folder: Path
    dense: Path
    batch: int
    title: str


@cache
def judge() -> ClipJudge:
    return ClipJudge(zoo.model_path(JUDGE))


def score(task: Task) -> None:
    """Make a task's pictures and score them; the scores are written last, as `<prompt set>.json`."""
    start, spec = perf_counter(), task.spec
    captions = [prompt.caption for prompt in zoo.prompts(task.prompts)[: spec.limit]]
    paths = generate(
        models.load(spec.model),
        task.plan,
        captions,
        task.folder / task.prompts,
        seed=spec.seed,
        guidance=spec.guidance,
        batch=task.batch,
        title=task.title,
    )
    dense = image_paths(task.dense / task.prompts, len(captions))
    reference = zoo.model_path(REFERENCE) / "real.safetensors"
    cells, samples = quality.score(paths, captions, dense, spec.metrics, judge(), reference)
    data = {"metrics": cells, "samples": samples, "seconds": perf_counter() - start}
    write_text(task.folder / f"{task.prompts}.json", json.dumps(data) + "\n")


@contextmanager
def pool(workers: int) -> Iterator[Callable[[Sequence[Task]], None]]:
    """Runs tasks side by side in processes that share the machine's threads; in this process if there is one."""
    if workers == 1:
        yield lambda tasks: list(map(score, tasks))
        return
    threads = max(1, torch.get_num_threads() // workers)
    context = multiprocessing.get_context("spawn")  # a fork of a process with torch's threads may hang
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (threads,)) as executor:
        yield lambda tasks: list(executor.map(score, tasks))


class Suite:
    """The runs of one table with their workspace.

    A run's pictures, scores and seconds lie under `<workspace>/<digest>/`, written piece by piece; its record
    is put together from them. So a killed suite goes on where it stopped, and rows with equal specs share
    their work. A record without its workspace (a fresh clone holds the published ones) is measured again.
    """

    def __init__(self, specs: Sequence[RunSpec], workspace: Path, records: Path, batch: int, workers: int) -> None:
        self.specs = {spec.id: spec for spec in specs}
        self.workspace, self.records, self.batch, self.workers = workspace, records, batch, workers
        self.plans: dict[str, Plan] = {}

    def run(self, only: Sequence[str], *, fresh: bool) -> dict[str, str]:
        """Measure the rows in `only` that are not finished; returns the reason for each that cannot be."""
        wanted = self._with_needs(only)
        if fresh:
            self._forget(wanted)
        todo = [spec for spec in wanted if not self._finished(spec)]
        log.info("%d of %d runs are finished; %d to go", len(wanted) - len(todo), len(wanted), len(todo))
        failed: dict[str, str] = {}
        with pool(self.workers if todo else 1) as run_tasks:
            for number, spec in enumerate(todo, 1):
                try:
                    tasks = self._tasks(spec, title=f"{spec.id} ({number}/{len(todo)})")
                except DipgoError as error:
                    failed[spec.id] = str(error)
                    log.warning("%s cannot be measured: %s", spec.id, error)
                else:
                    run_tasks(tasks)
        measured = [spec for spec in todo if spec.id not in failed]
        self._time([spec for spec in measured if "latency" in spec.metrics])
        for spec in measured:
            self._write_record(spec)
        for spec in todo:
            if spec.id in failed:
                self._write_absent(spec, failed[spec.id])
        return failed

    def _with_needs(self, only: Sequence[str]) -> list[RunSpec]:
        """The asked rows and those they need, in the suite's order, in which needs come first."""
        digests = {spec.digest for name, spec in self.specs.items() if name in only}
        for spec in reversed(self.specs.values()):
            if spec.digest in digests:
                digests |= set(spec.needs)
        return [spec for spec in self.specs.values() if spec.digest in digests]

    def _folder(self, spec: RunSpec) -> Path:
        return self.workspace / spec.digest

    def _finished(self, spec: RunSpec) -> bool:
        pieces = [self._folder(spec) / f"{name}.json" for name in spec.prompts]
        pieces += [self._folder(spec) / "latency.json"] if "latency" in spec.metrics else []
        return record.find(self.records, spec.id, spec.digest) is not None and all(p.exists() for p in pieces)

    def _forget(self, specs: Sequence[RunSpec]) -> None:
        for folder in [self.workspace / "pruners", *map(self._folder, specs)]:
            shutil.rmtree(folder, ignore_errors=True)

    def plan(self, spec: RunSpec) -> Plan:
        """The method's answer for a run; a pruner is trained here unless it was before."""
        if spec.id not in self.plans:
            model = models.load(spec.model)
            sampler = Sampler(spec.scheduler, model.scheduler_config, spec.steps)
            pruners = self.workspace / "pruners"

            def train(settings: Mapping[str, Any]) -> np.ndarray:
                return training.train_once(model, sampler, spec, settings, pruners).scores

            context = PlanContext(
                model.denoiser, model.costs, sampler, spec.params, train, lambda name: self.plan(self.specs[name])
            )
            self.plans[spec.id] = method(spec.method)(context)
        return self.plans[spec.id]

    def _tasks(self, spec: RunSpec, title: str) -> list[Task]:
        """The prompt sets of a run whose pictures are not scored yet."""
        dense = self._folder(self.specs[spec.reference] if spec.reference else spec)
        folder, plan = self._folder(spec), self.plan(spec)
        missing = [name for name in spec.prompts if not (folder / f"{name}.json").exists()]
        return [Task(spec, plan, name, folder, dense, self.batch, f"{title}, {name}") for name in missing]

    def _time(self, specs: Sequence[RunSpec]) -> None:
        """Latency of all runs that lack it, in turn with their dense references."""
        missing = [spec for spec in specs if not (self._folder(spec) / "latency.json").exists()]
        if not missing:
            return
        references = {spec.id: spec.reference or spec.id for spec in missing}
        rows = {name: self.specs[name] for name in dict.fromkeys([*references.values(), *references])}
        guidance = missing[0].guidance
        seconds = latency.measure(models.load(missing[0].model), {n: self.plan(s) for n, s in rows.items()}, guidance)
        for spec in missing:
            rounds = {"run": seconds[spec.id], "dense": seconds[references[spec.id]]}
            write_text(self._folder(spec) / "latency.json", json.dumps(rounds) + "\n")

    def _write_record(self, spec: RunSpec) -> None:
        scored = {name: json.loads((self._folder(spec) / f"{name}.json").read_text()) for name in spec.prompts}
        plan = self.plan(spec)
        independent = macs_cells(plan, spec.guidance)
        if "latency" in spec.metrics:
            independent |= latency_cells(json.loads((self._folder(spec) / "latency.json").read_text()))
        if "train" in spec.params:
            model = models.load(spec.model)
            trained = training.train_once(model, plan.sampler, spec, spec.params["train"], self.workspace / "pruners")
            independent["training_seconds"] = {"value": trained.seconds}
        weights = {spec.model: spec.revision, JUDGE: zoo.revision(JUDGE)}
        schedule = plan.schedule.to_dict() | {"calls": plan.schedule.calls}
        absent = {} if "step_skip_share" in independent else {"step_skip_share": "nothing is skipped"}
        done = Record(
            id=spec.id,
            digest=spec.digest,
            spec=spec.to_json(),
            metrics={record.ALL: independent, **{name: found["metrics"] for name, found in scored.items()}},
            samples={name: found["samples"] for name, found in scored.items()},
            absent=absent,
            provenance=provenance(weights, self.workers)
            | {
                "seconds": {name: found["seconds"] for name, found in scored.items()},
                "batch": self.batch,
            },
            schedule=schedule if plan.schedule.reuse.any() else None,
        )
        record.write(done, self.records, replace=True)

    def _write_absent(self, spec: RunSpec, reason: str) -> None:
        absent = dict.fromkeys(spec.metrics, reason)
        stamp = provenance({spec.model: spec.revision})
        done = Record(spec.id, spec.digest, spec.to_json(), metrics={}, absent=absent, provenance=stamp)
        record.write(done, self.records, replace=True)


def macs_cells(plan: Plan, guidance: float) -> dict[str, dict[str, Any]]:
    """MACs of one image in both conventions, and what the schedule is made of."""
    execution = plan.costs.graph.execute(plan.schedule)
    charged = plan.sampler.charged_steps / plan.sampler.calls  # the paper charges steps, not calls
    branches = 2 if guidance > 1 else 1
    cells = {
        "macs_paper": float(plan.costs.paper.per_call(execution.computed).sum()) * charged,
        "macs_full": float(plan.costs.full.per_call(execution.computed).sum()) * branches,
        "pruned_ratio": plan.costs.pruned_ratio(plan.schedule),
        "computed_calls": int(execution.computed_calls.sum()),
        "step_skip_share": plan.costs.step_skip_share(plan.schedule),
    }
    return {name: {"value": value} for name, value in cells.items() if value is not None}


def latency_cells(rounds: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, dict[str, Any]]:
    """Median seconds and speedups with their quartiles; a speedup pairs the two runs of one round."""
    cells = {}
    for name in LATENCY_METRICS:
        seconds = [once[name] for once in rounds["run"]]
        pairs = zip(rounds["dense"], seconds, strict=True)
        cells[f"seconds_{name}"] = _spread(seconds)
        cells[f"speedup_{name}"] = _spread([dense[name] / own for dense, own in pairs])
    return cells


def _spread(values: Sequence[float]) -> dict[str, Any]:
    low, high = np.quantile(values, [0.25, 0.75])
    return {"value": median(values), "n": len(values), "low": float(low), "high": float(high)}


def revisions() -> dict[str, str]:
    """For every zoo entry what a run's results rest on: its own files, the judge's, the features', the prompts'."""
    shared = [zoo.revision(name) for name in (JUDGE, REFERENCE, "prompts")]
    return {name: ".".join([zoo.revision(name), *shared]) for name in zoo.manifest()}


def check_rows(specs: Sequence[RunSpec], only: Sequence[str]) -> None:
    """Raise for a row that the suite does not have."""
    known = [spec.id for spec in specs]
    for name in only:
        if name not in known:
            raise unknown("row", name, known)
