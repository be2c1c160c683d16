"""The runs that the drift gate draws: a few pictures of every family and sampler, made and scored as in a suite."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from baselines import Plan, method
from benchmarks import ROOT
from benchmarks.models import model as models
from benchmarks.models.generate import image_paths
from benchmarks.models.macs import macs_cells
from benchmarks.prepare.studio import RunStudio
from benchmarks.runs import tasks
from benchmarks.runs.tasks import Task
from benchmarks.specs.profiles import DEFAULT
from benchmarks.specs.run import RunSpec
from benchmarks.specs.suite import load_suite
from benchmarks.supply.profiles import source
from dipgo import Schedule

BATCH = 4
"""Pictures drawn at once: neither all of a case nor a divisor of them, so that what depends on the place in a batch
shows."""
TEXT = ("clip_score", "psnr", "ssim", "fid_efflite0", "kid_efflite0")
CLASSES = ("class_score", "psnr", "ssim", "fid_efflite0", "kid_efflite0")


@dataclass(frozen=True)
class Case:
    """A run of a suite, with fewer pictures."""

    suite: str
    run: str
    """The id of the run in the suite."""
    reference: str
    """The name of the case whose stored pictures PSNR and SSIM compare with; a case's own name for none."""
    count: int = 10
    """How many pictures are drawn."""
    learned: bool = False
    """Whether the schedule is that of the published record, so that nothing is trained here."""
    prompts: str = "held-out"
    metrics: tuple[str, ...] = TEXT

    @property
    def spec(self) -> RunSpec:
        """The run with this case's pictures and metrics."""
        return replace(_suite(self.suite)[self.run], limit=self.count, prompts=(self.prompts,), metrics=self.metrics)


CASES = {
    "plms": Case("table1", "plms-50", "plms"),
    "deepcache": Case("table1", "deepcache-5", "plms"),
    "pruner": Case("table1", "ours-0.80", "plms", learned=True),
    "ours+": Case("table1", "plus-0.80", "plms", learned=True),
    "ddim": Case("table1", "ddim-10", "plms"),
    "unipc": Case("table1", "unipc-10", "plms"),
    "bk": Case("table1", "bk-small", "bk", count=6),
    "dpm": Case("table2", "sd2-dpm-10", "dpm"),
    "lcm": Case("table4", "xl-lcm-4", "lcm"),
    "dit": Case("table3", "dit-ddim-20", "dit", prompts="classes", metrics=CLASSES),
    "dit-delta": Case(
        "table3", "dit-ours-delta-0.75", "dit", count=6, learned=True, prompts="classes", metrics=CLASSES
    ),
    "pixart": Case("table8", "pixart-dpm-12", "pixart"),
    "pixart+": Case("table8", "pixart-plus-0.80", "pixart", learned=True),
}


@dataclass(frozen=True)
class Outcome:
    """What a case gave.

    `pixels` is uint8 [n, height, width, 3]. `scores` holds a value for each picture by metric, `distances` one value of
    the whole set by metric, and `facts` what no rounding may change: MACs, calls and timesteps.
    """

    pixels: np.ndarray
    scores: Mapping[str, np.ndarray]
    distances: Mapping[str, float]
    facts: Mapping[str, float | str]


@cache
def _suite(name: str) -> dict[str, RunSpec]:
    path = ROOT / "benchmarks" / "suites" / f"{name}.toml"
    return {spec.id: spec for spec in load_suite(path, source(DEFAULT).revision)}


def revisions() -> dict[str, str]:
    """The revision of every case: it changes with the model, the prompts, the judge or the real pictures."""
    return {name: case.spec.revision for name, case in CASES.items()}


def plan_of(case: Case, schedule: Schedule | None) -> Plan:
    """The plan of a case; a learned one runs `schedule`."""
    context = RunStudio(case.spec, Path()).context()
    if schedule is None:
        return method(case.spec.method).plan(context)
    return Plan(context.sampler, schedule, context.at_sites(schedule.sites).costs)


def outcome(case: Case, schedule: Schedule | None, folder: Path, reference: Path, batch: int = BATCH) -> Outcome:
    """Draw the pictures that `folder` lacks, and score all of them against those in the folder `reference`."""
    plan = plan_of(case, schedule)
    tasks.score(Task(case.spec, plan, case.prompts, folder, reference, batch))
    done = json.loads((folder / f"{case.prompts}.json").read_text(encoding="utf-8"))
    cells, samples = done["metrics"], done["samples"]
    branches = models.load(case.spec).branches(case.spec.guidance)
    facts: dict[str, float | str] = {name: cell["value"] for name, cell in macs_cells(plan, branches).items()}
    facts |= {"calls": plan.sampler.calls, "timesteps": " ".join(f"{t:g}" for t in plan.sampler.timesteps.tolist())}
    paths = image_paths(folder / case.prompts, case.count)
    return Outcome(
        np.stack([np.asarray(Image.open(path)) for path in paths]),
        {name: np.array(values) for name, values in samples.items()},
        {name: cell["value"] for name, cell in cells.items() if name not in samples},
        facts,
    )
