"""Runs of a suite, from specs to records. Whatever is finished is kept by its digest and never done twice."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from math import inf
from pathlib import Path
from time import perf_counter
from typing import Any

from filelock import FileLock, Timeout

from baselines import Plan, method
from baselines.preparation import Preparation
from benchmarks.machine.jobs import Job, failing, run_jobs
from benchmarks.machine.provenance import provenance
from benchmarks.machine.shards import ALONE, shards
from benchmarks.models import model as models
from benchmarks.models.generate import batch_of, pictures_at_once
from benchmarks.prepare import kept
from benchmarks.prepare.studio import RunStudio
from benchmarks.runs.assemble import assemble
from benchmarks.runs.tasks import Task, captions_of, draw, prepare, score
from benchmarks.specs import record
from benchmarks.specs.files import write_text
from benchmarks.specs.record import Record
from benchmarks.specs.run import RunSpec
from benchmarks.speed import latency
from benchmarks.supply.profiles import source
from dipgo.errors import DipgoError

log = logging.getLogger(__name__)


class Suite:
    """The runs of one table with their workspace.

    A run's pictures, scores and seconds lie under `<workspace>/<digest>/`, written piece by piece; its record
    is put together from them. So a killed suite goes on where it stopped, and rows with equal specs share
    their work. A record without its workspace (a fresh clone holds the published ones) is measured again.
    """

    def __init__(
        self,
        specs: Sequence[RunSpec],
        workspace: Path,
        records: Path,
        batch: int | None,
        workers: int,
        minutes: float = inf,
    ) -> None:
        """Set a suite up; nothing runs yet.

        specs: the runs, each after all that it needs.
        workspace: the folder of pictures and partial results.
        records: the folder of records.
        batch: how many pictures are made at once; None for as many as their size allows.
        workers: how many processes work side by side.
        minutes: no row is timed once so many minutes are over.
        """
        self.minutes, self.end = minutes, perf_counter() + 60 * minutes
        self.specs = {spec.id: spec for spec in specs}
        self.workspace, self.records, self.batch = workspace, records, batch
        self.workers = workers if shards().count == 1 else 1  # launched processes are the workers
        self.plans: dict[str, Plan] = {}

    def run(self, wanted: Sequence[RunSpec], *, fresh: bool) -> dict[str, str]:
        """Measure the runs that are not finished; return the reason for each that cannot be.

        fresh: forget what is finished, and measure all of them.
        """
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
        """Let nobody else measure these runs in this workspace meanwhile; a killed process claims nothing."""
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
        """Make whatever is left, time the runs and write the records; return the reason for each run that cannot be
        measured."""
        failed = self._make(todo)
        self._time([spec for spec in todo if spec.id not in failed and "latency" in spec.metrics], failed)
        for spec in todo:
            if spec.id not in failed:
                with failing(failed, spec.id, f"{spec.id}'s record"):
                    self._write_record(spec)
        reasons = {name: str(error) for name, error in failed.items()}
        for name, reason in reasons.items():
            self._write_absent(self.specs[name], reason)
        return reasons

    def _folder(self, spec: RunSpec) -> Path:
        return self.workspace / spec.digest

    def _finished(self, spec: RunSpec) -> bool:
        pieces = [self._folder(spec) / f"{name}.json" for name in spec.prompts]
        pieces += [self._folder(spec) / "latency.json"] if "latency" in spec.metrics else []
        return record.find(self.records, spec.id, spec.digest) is not None and all(p.exists() for p in pieces)

    def _forget(self, specs: Sequence[RunSpec]) -> None:
        for path in {path for spec in specs for path in self._prepared(spec)}:
            kept.forget(path)
        for spec in specs:
            shutil.rmtree(self._folder(spec), ignore_errors=True)

    def plan(self, spec: RunSpec) -> Plan:
        """Return the method's answer for a run. What it has not prepared yet is made here."""
        if spec.id not in self.plans:
            studio = RunStudio(spec, self.workspace, lambda name: self.plan(self.specs[name]))
            self.plans[spec.id] = method(spec.method).plan(studio.context())
        return self.plans[spec.id]

    def _share(self, specs: Sequence[RunSpec]) -> None:
        """Do what launched processes do side by side: each prepares some of the methods and makes a part of every
        prompt set's pictures, and all search together. What fails is left for the one that finishes, which says why."""
        ignored: dict[Any, DipgoError] = {}
        for wave in self._waves(specs):
            alone = [path for path, (_, preparation) in wave.items() if not preparation.together]
            together = [path for path in wave if path not in alone]
            shards().wait()  # all have seen what is missing before anything is made
            for path in [*alone[shards().part], *together]:
                with failing(ignored, path, str(path)):
                    group = shards() if path in together else ALONE
                    prepare(wave[path][0], self.workspace, path, group)
            shards().wait()
        missing = self._missing(specs).keys()
        for spec in specs:
            if missing.isdisjoint(self._needed(spec)):
                with failing(ignored, spec.id, spec.id):
                    for name in spec.prompts:
                        draw(self._task(spec, name), shards().part)
        shards().wait()

    def _waves(self, specs: Sequence[RunSpec]) -> Iterator[dict[Path, tuple[RunSpec, Preparation]]]:
        """Yield what is missing, wave after wave: a wave needs nothing that is still missing."""
        tried: set[Path] = set()
        while True:
            missing = self._missing(specs)
            wave = {
                path: (spec, preparation)
                for path, (spec, preparation) in missing.items()
                if path not in tried and missing.keys().isdisjoint(self._needs(spec, preparation))
            }
            if not wave:
                return
            tried |= wave.keys()
            yield wave

    def _make(self, specs: Sequence[RunSpec]) -> dict[str, DipgoError]:
        """Prepare the methods, and make and score the pictures, that runs lack; return the reason by id where that
        failed."""
        broken = run_jobs(self._jobs(specs), self.workers)
        failed: dict[str, DipgoError] = {}
        for spec in specs:
            keys = [*self._prepared(spec), *((spec.digest, name) for name in spec.prompts)]
            with failing(failed, spec.id, f"{spec.id}'s plan"):
                for key in keys:
                    if key in broken:
                        raise broken[key]
                self.plan(spec)
        return failed

    def _jobs(self, specs: Sequence[RunSpec]) -> dict[Any, Job]:
        """Return what is missing, in the order in which it had best begin: dense references, which other runs are
        compared with; preparations, which take longest; all other prompt sets."""
        references = {name for spec in specs for name in (spec.reference, spec.converged)}
        jobs = self._scoring([spec for spec in specs if spec.id in references])
        for path, (spec, preparation) in self._missing(specs).items():
            call = partial(tuple, (prepare, spec, self.workspace, path))
            jobs[path] = Job(f"{preparation.title} of {spec.id}", call, self._needs(spec, preparation))
        return jobs | self._scoring(specs)

    def _prepared(self, spec: RunSpec) -> dict[Path, Preparation]:
        """Return what a run's method prepares, by the files that hold it."""
        return kept.preparations(spec, self.workspace)

    def _needs(self, spec: RunSpec, preparation: Preparation) -> tuple[Path, ...]:
        """Return the files of the preparations that another one needs."""
        return tuple(kept.path_of(spec, need, self.workspace) for need in preparation.needs.values())

    def _missing(self, specs: Sequence[RunSpec]) -> dict[Path, tuple[RunSpec, Preparation]]:
        """Return the preparations that are not finished, each with the first run that needs it."""
        missing: dict[Path, tuple[RunSpec, Preparation]] = {}
        for spec in specs:
            for path, preparation in self._prepared(spec).items():
                if path not in missing and not kept.finished(path):
                    missing[path] = spec, preparation
        return missing

    def _needed(self, spec: RunSpec) -> list[Path]:
        """Return the files of what a run and the runs whose results it consumes have prepared."""
        others = [other for other in self.specs.values() if other.digest in spec.needs]
        return [*self._prepared(spec), *(path for other in others for path in self._needed(other))]

    def _scoring(self, specs: Sequence[RunSpec]) -> dict[Any, Job]:
        """Return the jobs for the prompt sets that are not scored yet."""
        jobs = {}
        for spec in specs:
            compared = {self.specs[other].digest for other in (spec.reference, spec.converged) if other}
            for name in spec.prompts:
                if (self._folder(spec) / f"{name}.json").exists():
                    continue

                def call(spec: RunSpec = spec, name: str = name) -> tuple[Any, ...]:
                    return score, self._task(spec, name)

                needs = [*self._needed(spec), *((digest, name) for digest in compared)]
                jobs[spec.digest, name] = Job(f"{spec.id}, {name}", call, tuple(needs))
        return jobs

    def _task(self, spec: RunSpec, prompts: str) -> Task:
        dense = self.specs[spec.reference or spec.id]
        converged = self._folder(self.specs[spec.converged]) if spec.converged else None
        folder = self._folder(spec)
        return Task(spec, self.plan(spec), prompts, folder, self._folder(dense), self._batch(spec), converged)

    def _batch(self, spec: RunSpec) -> int:
        """Return how many pictures are made at once."""
        return batch_of(self.plan(spec), self.batch or pictures_at_once(spec.resolution))

    def _time(self, specs: Sequence[RunSpec], failed: dict[str, DipgoError]) -> None:
        """Time all runs that lack it, in turn with their dense references; the reasons of those that fail are added to
        `failed`."""
        missing = [spec for spec in specs if not (self._folder(spec) / "latency.json").exists()]
        references = {spec.id: spec.reference or spec.id for spec in missing}
        timed: dict[str, latency.Timed] = {}
        broken: dict[str, DipgoError] = {}
        for name in dict.fromkeys([*references.values(), *references]):
            spec = self.specs[name]
            with failing(broken, name, f"timing {name}"):
                caption = captions_of(spec, spec.prompts[0])[0]
                timed[name] = latency.Timed(models.load(spec), self.plan(spec), caption, spec.guidance)
        over, guard = (lambda: perf_counter() > self.end), (lambda name: failing(broken, name, f"timing {name}"))
        seconds = latency.measure(timed, over=over, guard=guard) if timed else {}
        for spec in missing:
            reason = broken.get(spec.id) or broken.get(references[spec.id])
            if reason is not None:
                failed[spec.id] = reason
                continue
            # Where the minutes are over, the last round is cut off.
            pairs = [*zip(seconds[spec.id], seconds[references[spec.id]], strict=False)]
            if not pairs:
                failed[spec.id] = DipgoError(f"the {self.minutes:g} minutes were over before its turn; give it more")
                continue
            rounds = dict(zip(("run", "dense"), zip(*pairs, strict=True), strict=True))
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
