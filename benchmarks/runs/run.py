"""Runs of a suite, from specs to records. Whatever is finished is kept by its digest and never done twice."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from baselines import Plan, method
from benchmarks.machine.jobs import Job, run_jobs
from benchmarks.machine.provenance import provenance
from benchmarks.machine.shards import shards
from benchmarks.models import model as models
from benchmarks.models.generate import pictures_at_once
from benchmarks.prepare import forecasts, training
from benchmarks.prepare import search as fitness
from benchmarks.runs.assemble import assemble
from benchmarks.runs.tasks import (
    FORECASTS,
    PRUNERS,
    SEARCHES,
    Task,
    captions_of,
    context_of,
    draw,
    forecast,
    score,
    search,
    train,
)
from benchmarks.specs import record
from benchmarks.specs.files import write_text
from benchmarks.specs.record import Record
from benchmarks.specs.run import RunSpec
from benchmarks.speed import latency
from benchmarks.supply.profiles import source
from dipgo.errors import DipgoError, unknown

log = logging.getLogger(__name__)


class Suite:
    """The runs of one table with their workspace.

    A run's pictures, scores and seconds lie under `<workspace>/<digest>/`, written piece by piece; its record
    is put together from them. So a killed suite goes on where it stopped, and rows with equal specs share
    their work. A record without its workspace (a fresh clone holds the published ones) is measured again.
    """

    def __init__(
        self, specs: Sequence[RunSpec], workspace: Path, records: Path, batch: int | None, workers: int
    ) -> None:
        """`batch`: pictures made at once; None: as many as their size allows."""
        self.specs = {spec.id: spec for spec in specs}
        self.workspace, self.records, self.batch = workspace, records, batch
        self.workers = workers if shards().count == 1 else 1  # launched processes are the workers
        self.pruners, self.searches, self.forecasts = (workspace / name for name in (PRUNERS, SEARCHES, FORECASTS))
        self.plans: dict[str, Plan] = {}

    def run(self, wanted: Sequence[RunSpec], *, fresh: bool) -> dict[str, str]:
        """Measure the runs that are not finished; returns the reason for each that cannot be."""
        with self._claim([spec for spec in wanted if fresh or not self._finished(spec)]):
            if fresh and shards().index == 0:
                self._forget(wanted)
            shards().wait()
            todo = [spec for spec in wanted if not self._finished(spec)]
            for spec in todo:
                source(spec.profile).require(spec.to_json())
            log.info("%d of %d runs are finished; %d to go", len(wanted) - len(todo), len(wanted), len(todo))
            if shards().count > 1:
                self._share(todo)
            failed = self._finish(todo) if shards().index == 0 else {}
            shards().wait()
        return failed

    @contextmanager
    def _claim(self, specs: Sequence[RunSpec]) -> Iterator[None]:
        """Nobody else measures these runs in this workspace meanwhile; a killed process's claim ends with it."""
        with ExitStack() as claims:
            for digest, spec in {spec.digest: spec for spec in specs if shards().index == 0}.items():
                path = self.workspace / f"{digest}.lock"
                path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    claims.enter_context(FileLock(path).acquire(blocking=False))
                except Timeout:
                    raise DipgoError(
                        f"run {spec.id!r} is being measured by another process in {self.workspace}; wait for it, or "
                        "pass another --workspace and --records"
                    ) from None
            yield

    def _finish(self, todo: Sequence[RunSpec]) -> dict[str, str]:
        """Whatever is left to make, the latency, and the records; the reason for each run that cannot be measured."""
        failed = self._make(todo)
        measured = [spec for spec in todo if spec.id not in failed]
        self._time([spec for spec in measured if "latency" in spec.metrics])
        for spec in measured:
            self._write_record(spec)
        for name, reason in failed.items():
            self._write_absent(self.specs[name], reason)
        return failed

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

    def _share(self, specs: Sequence[RunSpec]) -> None:
        """What launched processes do side by side: each trains some of the pruners and makes a part of every prompt
        set's pictures, and all search together. What fails is left for the one that finishes, which says why."""
        prepare = self._preparations(specs)
        trainings = [job.call() for path, job in prepare.items() if path.parent != self.searches]
        searches = [(*job.call(), shards()) for path, job in prepare.items() if path.parent == self.searches]
        for function, *arguments in [*trainings[shards().part], *searches]:
            with suppress(DipgoError):
                function(*arguments)
        shards().wait()
        unprepared = self._preparations(specs)
        for spec in specs:
            if not unprepared.keys() & set(self._prepared(spec)):
                with suppress(DipgoError):
                    for name in spec.prompts:
                        draw(self._task(spec, name), shards().part)
        shards().wait()

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
        return jobs | self._preparations(specs) | self._scoring(specs)

    def _preparations(self, specs: Sequence[RunSpec]) -> dict[Path, Job]:
        """The trainings, forecasts and searches that are not through yet."""
        jobs = {}
        for spec in specs:
            for path in self._prepared(spec):
                if path.parent == self.pruners and not path.exists():
                    jobs[path] = Job(f"pruner of {spec.id}", lambda spec=spec: (train, spec, self.pruners))
                elif path.parent == self.forecasts and not path.exists():
                    needs = tuple(other for other in self._prepared(spec) if other.parent == self.pruners)
                    jobs[path] = Job(
                        f"forecast of {spec.id}", lambda spec=spec: (forecast, spec, self.workspace), needs
                    )
                elif path.parent == self.searches and not fitness.read_journal(path).finished:
                    jobs[path] = Job(f"search of {spec.id}", lambda spec=spec: (search, spec, self.workspace))
        return jobs

    def _prepared(self, spec: RunSpec) -> list[Path]:
        """The files of the training, the forecast and the search that a run's method starts from, if it does."""
        settings = spec.params.get("train")
        pruner = [] if settings is None else [training.path_of(spec, settings, self.pruners)]
        pruner += [forecasts.path_of(spec, self.forecasts)] if "learn" in spec.params else []
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

                def call(spec: RunSpec = spec, name: str = name) -> tuple[Any, ...]:
                    return score, self._task(spec, name)

                needs = [*prepared, *([(dense.digest, name)] if dense is not spec else [])]
                jobs[spec.digest, name] = Job(f"{spec.id}, {name}", call, tuple(needs))
        return jobs

    def _task(self, spec: RunSpec, prompts: str) -> Task:
        dense = self.specs[spec.reference or spec.id]
        return Task(spec, self.plan(spec), prompts, self._folder(spec), self._folder(dense), self._batch(spec))

    def _batch(self, spec: RunSpec) -> int:
        return self.batch or pictures_at_once(spec.resolution)

    def _time(self, specs: Sequence[RunSpec]) -> None:
        """Latency of all runs that lack it, in turn with their dense references."""
        missing = [spec for spec in specs if not (self._folder(spec) / "latency.json").exists()]
        references = {spec.id: spec.reference or spec.id for spec in missing}
        rows = {name: self.specs[name] for name in dict.fromkeys([*references.values(), *references])}
        timed = {
            name: latency.Timed(
                models.load(spec), self.plan(spec), captions_of(spec, spec.prompts[0])[0], spec.guidance
            )
            for name, spec in rows.items()
        }
        seconds = latency.measure(timed) if timed else {}
        for spec in missing:
            rounds = {"run": seconds[spec.id], "dense": seconds[references[spec.id]]}
            write_text(self._folder(spec) / "latency.json", json.dumps(rounds) + "\n")

    def _write_record(self, spec: RunSpec) -> None:
        settings = {"batch": self._batch(spec), "workers": self.workers, "processes": shards().count}
        done = assemble(spec, self.plan(spec), self.workspace, settings)
        record.write(done, self.records, replace=True)

    def _write_absent(self, spec: RunSpec, reason: str) -> None:
        absent = dict.fromkeys(spec.metrics, reason)
        stamp = provenance({spec.model: spec.revision})
        done = Record(spec.id, spec.digest, spec.to_json(), metrics={}, absent=absent, provenance=stamp)
        record.write(done, self.records, replace=True)


def with_needs(specs: Sequence[RunSpec], only: Sequence[str]) -> list[RunSpec]:
    """The runs of the ids `only` and those they need, in the suite's order, in which needs come first. Raises for an
    id that the suite does not have."""
    known = [spec.id for spec in specs]
    for name in only:
        if name not in known:
            raise unknown("row", name, known)
    digests = {spec.digest for spec in specs if spec.id in only}
    for spec in reversed(specs):
        if spec.digest in digests:
            digests |= set(spec.needs)
    return [spec for spec in specs if spec.digest in digests]
