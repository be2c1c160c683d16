"""Runs of a suite, from specs to records. Whatever is finished is kept by its digest and never done twice."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from baselines import Plan, method
from benchmarks import fitness, latency, models, record, training
from benchmarks.cells import latency_cells, macs_cells, search_cells, training_cells
from benchmarks.fitness import fitness_of
from benchmarks.jobs import Job, run_jobs
from benchmarks.provenance import provenance
from benchmarks.record import Record, write_text
from benchmarks.spec import RunSpec, unknown
from benchmarks.tasks import JUDGE, PRUNERS, REFERENCE, SEARCHES, Task, captions_of, context_of, score, search, train
from benchmarks.zoo import zoo
from dipgo import DipgoError

log = logging.getLogger(__name__)


class Suite:
    """The runs of one table with their workspace.

    A run's pictures, scores and seconds lie under `<workspace>/<digest>/`, written piece by piece; its record
    is put together from them. So a killed suite goes on where it stopped, and rows with equal specs share
    their work. A record without its workspace (a fresh clone holds the published ones) is measured again.
    """

    def __init__(self, specs: Sequence[RunSpec], workspace: Path, records: Path, batch: int, workers: int) -> None:
        self.specs = {spec.id: spec for spec in specs}
        self.workspace, self.records, self.batch, self.workers = workspace, records, batch, workers
        self.pruners, self.searches = workspace / PRUNERS, workspace / SEARCHES
        self.plans: dict[str, Plan] = {}

    def run(self, only: Sequence[str], *, fresh: bool) -> dict[str, str]:
        """Measure the rows in `only` that are not finished; returns the reason for each that cannot be."""
        wanted = self._with_needs(only)
        if fresh:
            self._forget(wanted)
        todo = [spec for spec in wanted if not self._finished(spec)]
        log.info("%d of %d runs are finished; %d to go", len(wanted) - len(todo), len(wanted), len(todo))
        failed = self._make(todo)
        for name, reason in failed.items():
            log.warning("%s cannot be measured: %s", name, reason)
        measured = [spec for spec in todo if spec.id not in failed]
        self._time([spec for spec in measured if "latency" in spec.metrics])
        for spec in measured:
            self._write_record(spec)
        for name, reason in failed.items():
            self._write_absent(self.specs[name], reason)
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
        for path in {path for spec in specs for path in self._prepared(spec)}:
            path.unlink(missing_ok=True)
        for spec in specs:
            shutil.rmtree(self._folder(spec), ignore_errors=True)

    def plan(self, spec: RunSpec) -> Plan:
        """The method's answer for a run; a training or search that is not through yet happens here."""
        if spec.id not in self.plans:
            context = context_of(spec, self.workspace, lambda name: self.plan(self.specs[name]))
            self.plans[spec.id] = method(spec.method)(context)
        return self.plans[spec.id]

    def _make(self, specs: Sequence[RunSpec]) -> dict[str, str]:
        """Trains the pruners, and makes and scores the pictures, that runs lack; reasons by id where that failed."""
        broken = run_jobs(self._jobs(specs), self.workers)
        failed: dict[str, str] = {}
        for spec in specs:
            keys = [*self._prepared(spec), *((spec.digest, name) for name in spec.prompts)]
            try:
                for key in keys:
                    if key in broken:
                        raise broken[key]
                self.plan(spec)
            except DipgoError as error:
                failed[spec.id] = str(error)
        return failed

    def _jobs(self, specs: Sequence[RunSpec]) -> dict[Any, Job]:
        """What is missing, in the order in which it had best begin: dense references, which other runs are compared
        with; trainings and searches, which take longest; all other prompt sets."""
        references = {spec.reference for spec in specs}
        jobs = self._scoring([spec for spec in specs if spec.id in references])
        for spec in specs:
            for path in self._prepared(spec):
                if path.parent == self.pruners and not path.exists():
                    jobs[path] = Job(f"pruner of {spec.id}", lambda spec=spec: (train, spec, self.pruners))
                elif path.parent == self.searches and not fitness.read_journal(path).finished:
                    jobs[path] = Job(f"search of {spec.id}", lambda spec=spec: (search, spec, self.workspace))
        return jobs | self._scoring(specs)

    def _prepared(self, spec: RunSpec) -> list[Path]:
        """The files of the training and of the search that a run's method starts from, if it does."""
        settings = spec.params.get("train")
        pruner = [] if settings is None else [training.path_of(spec, settings, self.pruners)]
        return pruner + ([fitness.path_of(spec, self.searches)] if "search" in spec.params else [])

    def _scoring(self, specs: Sequence[RunSpec]) -> dict[Any, Job]:
        """The prompt sets of runs that are not scored yet."""
        jobs = {}
        for spec in specs:
            sources = [spec] + [self.specs[name] for name in (spec.params.get("of"),) if name]
            prepared = [path for source in sources for path in self._prepared(source)]
            dense = self.specs[spec.reference or spec.id]
            for name in spec.prompts:
                if (self._folder(spec) / f"{name}.json").exists():
                    continue

                def call(spec: RunSpec = spec, name: str = name, dense: RunSpec = dense) -> tuple[Any, ...]:
                    folders = self._folder(spec), self._folder(dense)
                    return score, Task(spec, self.plan(spec), name, *folders, self.batch)

                needs = [*prepared, *([(dense.digest, name)] if dense is not spec else [])]
                jobs[spec.digest, name] = Job(f"{spec.id}, {name}", call, tuple(needs))
        return jobs

    def _time(self, specs: Sequence[RunSpec]) -> None:
        """Latency of all runs that lack it, in turn with their dense references."""
        missing = [spec for spec in specs if not (self._folder(spec) / "latency.json").exists()]
        references = {spec.id: spec.reference or spec.id for spec in missing}
        rows = {name: self.specs[name] for name in dict.fromkeys([*references.values(), *references])}
        timed = {
            name: latency.Timed(
                models.load(spec.model), self.plan(spec), captions_of(spec, spec.prompts[0])[0], spec.guidance
            )
            for name, spec in rows.items()
        }
        seconds = latency.measure(timed) if timed else {}
        for spec in missing:
            rounds = {"run": seconds[spec.id], "dense": seconds[references[spec.id]]}
            write_text(self._folder(spec) / "latency.json", json.dumps(rounds) + "\n")

    def _write_record(self, spec: RunSpec) -> None:
        scored = {name: json.loads((self._folder(spec) / f"{name}.json").read_text()) for name in spec.prompts}
        plan = self.plan(spec)
        branches = 2 if models.load(spec.model).branch_guidance(spec.guidance) > 1 else 1
        independent = macs_cells(plan, branches)
        if "latency" in spec.metrics:
            independent |= latency_cells(json.loads((self._folder(spec) / "latency.json").read_text()))
        absent = {} if "step_skip_share" in independent else {"step_skip_share": "nothing is skipped"}
        if "train" in spec.params:
            independent |= training_cells(training.train_once(spec, spec.params["train"], self.pruners))
        trace = None
        if "search" in spec.metrics:
            evaluated = fitness_of(spec, self.searches)
            independent |= search_cells(evaluated.journal, evaluated([plan.schedule])[0])
            trace = evaluated.journal.trace if "search" in spec.params else None
            if "evaluations" not in independent:
                absent["evaluations"] = "no search: the pruner is trained by gradients"
                independent["search_seconds"] = independent["training_seconds"]
        weights = {spec.model: spec.revision, JUDGE: zoo.revision(JUDGE)}
        schedule = plan.schedule.to_dict() | {"calls": plan.schedule.calls}
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
            trace=trace,
        )
        record.write(done, self.records, replace=True)

    def _write_absent(self, spec: RunSpec, reason: str) -> None:
        absent = dict.fromkeys(spec.metrics, reason)
        stamp = provenance({spec.model: spec.revision})
        done = Record(spec.id, spec.digest, spec.to_json(), metrics={}, absent=absent, provenance=stamp)
        record.write(done, self.records, replace=True)


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
