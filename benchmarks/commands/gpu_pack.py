"""`python -m benchmarks gpu-pack`: in a few minutes on a GPU, what only a GPU shows of the paper's tables.

Latency, Fig. 3's seconds by pruned ratio and what a training step takes, of the paper's models at full size with random
weights, which change no second. Nothing is downloaded and no picture is kept. A schedule that takes pictures to find
is the zoo's of the same row: its models have as many blocks of the same names, over as many calls.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from baselines import method
from baselines.learned_schedule import PrunerTraining, Training
from baselines.params import read
from benchmarks import ROOT
from benchmarks.machine.provenance import provenance
from benchmarks.machine.shards import shards
from benchmarks.models import model as models
from benchmarks.models.macs import macs_cells
from benchmarks.prepare.studio import RunStudio
from benchmarks.runs.assemble import schedule_of
from benchmarks.runs.tasks import captions_of
from benchmarks.specs import record
from benchmarks.specs.files import construct, read_toml
from benchmarks.specs.record import Record
from benchmarks.specs.run import RunSpec
from benchmarks.specs.suite import load_suite
from benchmarks.speed import latency
from benchmarks.speed.cases import Case
from benchmarks.speed.latency import latency_cells
from dipgo import Sampler
from dipgo.errors import DipgoError, first_line, unknown

log = logging.getLogger(__name__)

HERE = Path(__file__).parent
PACK = HERE / "gpu_pack.toml"
PROFILE, DEVICE = "random-weights", "cuda"
EAGER, COMPILED, TRAINING = "latency", "latency_compiled", "training_step"  # what a row has, or is absent in
FAILURES = (ValueError, ArithmeticError, RuntimeError)  # that cost a part or a row, not the pack


@dataclass(frozen=True)
class Part:
    """Rows of a suite that are timed in turn; the first one is what the others are compared with. With `ratios` it is
    pruned to each of them instead, at random; with `training_steps` the rows' pruners are trained for so many."""

    suite: str
    rows: tuple[str, ...]
    ratios: tuple[float, ...] = ()
    compiled: bool = False
    training_steps: int = 0

    @property
    def metric(self) -> str:
        return TRAINING if self.training_steps else COMPILED if self.compiled else EAGER

    @property
    def suffix(self) -> str:
        """Of the names of its cells."""
        return "_compiled" if self.compiled else ""


@dataclass(frozen=True)
class Pack:
    """`rounds` are measured, after one to warm up; `compile_seconds` must be left for a part with compiled blocks."""

    rounds: int
    compile_seconds: float
    part: tuple[Part, ...]


@dataclass
class Row:
    """A run with what is known of it so far: its cells, the reasons for what is absent, and its schedule."""

    spec: RunSpec
    cells: dict[str, dict[str, Any]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    schedule: dict[str, Any] | None = None

    def measured(self, part: Part, cells: Mapping[str, Mapping[str, Any]]) -> None:
        """What another part has measured keeps its value: it belongs with the rows there."""
        self.cells = {f"{name}{part.suffix}": cell for name, cell in cells.items()} | self.cells
        self.absent.pop(part.metric, None)

    def missed(self, part: Part, reason: str) -> None:
        if not {f"seconds_denoiser{part.suffix}", "training_step_seconds"} & self.cells.keys():
            self.absent[part.metric] = reason


def read_pack(path: Path = PACK) -> Pack:
    """Raises `DipgoError` for an unknown or missing field."""
    data = read_toml(path)
    parts = tuple(construct(Part, part, f"{path}: part") for part in data.pop("part", ()))
    return construct(Pack, {**data, "part": parts}, str(path))


def specs_of(part: Part, published: Path) -> list[RunSpec]:
    """The runs of a part. `published`: the records whose schedules stand in for those that come from pictures; a run
    whose record is not there stays what the suite says, and cannot be timed. Raises `DipgoError` for a row that the
    suite does not have."""
    suite = _suite(part.suite)
    for name in part.rows:
        if name not in suite:
            raise unknown(f"row of {part.suite}", name, suite)
    if part.training_steps:
        return [_training(suite[name], part.training_steps) for name in part.rows]
    common = {"metrics": ("macs", "latency"), "limit": 1}
    dense = replace(suite[part.rows[0]], reference=None, needs=(), prompts=suite[part.rows[0]].prompts[:1], **common)
    others = [suite[name] for name in part.rows[1:]]
    others += [
        replace(dense, id=f"{dense.id}-pruned-{ratio:.2f}", method="random_scores", params={"ratio": ratio})
        for ratio in part.ratios
    ]
    compared = {"reference": dense.id, "needs": (dense.digest,), "prompts": dense.prompts, **common}
    return [dense, *(_with_schedule(replace(spec, **compared), published) for spec in others)]


@cache
def _suite(name: str) -> dict[str, RunSpec]:
    specs = load_suite(ROOT / "benchmarks" / "suites" / f"{name}.toml", lambda row: "random", PROFILE)
    return {spec.id: spec for spec in specs}


def _with_schedule(spec: RunSpec, published: Path) -> RunSpec:
    """The run with the published schedule where its own would come from pictures."""
    prepared = method(spec.method).prepares(spec.params)
    found = record.find(published, spec.id) if prepared else None
    if found is None or found.schedule is None:
        return spec
    schedule = {key: value for key, value in found.schedule.items() if key not in ("calls", "timesteps")}
    origin = f"{found.spec['model']}, {found.file}"
    return replace(spec, method="stored_schedule", params={"origin": origin, "schedule": schedule})


def _training(spec: RunSpec, steps: int) -> RunSpec:
    params = {"train": {**spec.to_json()["params"]["train"], "steps": steps}}
    return replace(spec, id=f"{spec.id}-training", params=params, metrics=(), limit=1, reference=None, needs=())


def run(pack: Pack, minutes: float, published: Path, records: Path) -> dict[str, str]:
    """Measure the parts of a pack in their order within `minutes`, and write a record a row into `records`, whose
    `absent` says what is missing and why. Returns the rows of which something is, with the first reason.

    Nothing begins that the time is over for; what has begun is finished.
    """
    if shards().device.type != DEVICE:
        raise DipgoError(
            "gpu-pack measures what only a GPU shows, and there is none here; run it on a machine with one, or measure "
            "this one by `pytest benchmarks/ --benchmark-only`"
        )
    if not minutes > 0:
        raise DipgoError(f"--minutes is {minutes}; it must be more than 0")
    end, last = perf_counter() + 60 * minutes, ""
    rows: dict[str, Row] = {}
    parts = [(part, specs_of(part, published)) for part in pack.part]
    for part, specs in parts:
        chosen = [rows.setdefault(spec.id, Row(spec)) for spec in specs]
        left = end - perf_counter()
        log.info("%.0f s left; %s: %s", left, part.suite, part.metric)
        if part.suite != last or part.training_steps:
            models.forget()
        last = part.suite
        for row in chosen:
            row.missed(part, f"the pack's {minutes:g} minutes were over before its turn")
        if left > (pack.compile_seconds if part.compiled else 0):
            (_train if part.training_steps else _time)(chosen, part, pack.rounds, end)
        for row in chosen:
            _write(row, records)
    return {name: next(iter(row.absent.values())) for name, row in rows.items() if row.absent}


def _time(rows: Sequence[Row], part: Part, rounds: int, end: float) -> None:
    """Seconds of the rows in turn, and speedups over the first one."""
    timed: dict[str, latency.Timed] = {}
    for row in rows:
        spec = row.spec
        try:
            model = models.load(spec)
            case = Case(model, Sampler(spec.scheduler, model.scheduler_config, spec.steps))
            plan = case.plan(spec.method, **spec.to_json()["params"])
        except FAILURES as error:
            row.missed(part, first_line(error))
            continue
        row.cells |= macs_cells(plan, model.branches(spec.guidance))
        row.schedule = schedule_of(plan)
        caption = captions_of(spec, spec.prompts[0])[0]
        timed[spec.id] = latency.Timed(model, plan, caption, spec.guidance, part.compiled)
    try:
        seconds = latency.measure(timed, rounds, lambda: perf_counter() > end)
    except FAILURES as error:
        for row in rows:
            row.missed(part, first_line(error))
        return
    for row in rows:
        own, dense = (seconds.get(name, []) for name in (row.spec.id, rows[0].spec.id))
        if own and dense:
            full = min(len(own), len(dense))  # the last round may have been cut off
            row.measured(part, latency_cells({"run": own[:full], "dense": dense[:full]}))


def _train(rows: Sequence[Row], part: Part, rounds: int, end: float) -> None:
    """Seconds of a step of the real training, the dense picture that it is compared with included, and the most memory
    allocated meanwhile."""
    for row in rows:
        try:
            settings = read(Training, row.spec.params["train"], f"{row.spec.id}.train")
            with TemporaryDirectory() as folder:
                studio = RunStudio(row.spec, Path(folder))
                training = studio.taught(PrunerTraining(settings), studio.context())
        except FAILURES as error:
            row.missed(part, first_line(error))
            continue
        cells = {
            "training_step_seconds": {"value": training["seconds"] / part.training_steps, "n": part.training_steps},
            "training_peak_memory": {"value": training["peak_memory"]},
        }
        row.measured(part, cells)


def _write(row: Row, records: Path) -> None:
    spec = row.spec
    metrics = {record.ALL: row.cells} if row.cells else {}
    stamp = provenance({spec.model: spec.revision})
    done = Record(spec.id, spec.digest, spec.to_json(), metrics, absent=row.absent, provenance=stamp)
    record.write(replace(done, schedule=row.schedule), records, replace=True)
