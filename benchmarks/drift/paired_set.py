"""A small paired set: three runs of Table 1 over the same prompts and seeds, drawn and scored as a suite does it."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from baselines import Plan, method
from benchmarks import ROOT
from benchmarks.models.generate import image_paths
from benchmarks.prepare.studio import RunStudio
from benchmarks.quality import features
from benchmarks.runs import tasks
from benchmarks.runs.tasks import Task
from benchmarks.specs.run import PROFILES, RunSpec
from benchmarks.specs.suite import load_suite
from benchmarks.supply.profiles import source
from dipgo import Schedule

SUITE = ROOT / "benchmarks" / "suites" / "table1.toml"
RUNS = {"dense": "plms-50", "deepcache": "deepcache-5", "ours": "ours-0.80"}
LEARNED = "ours"  # its schedule comes from a record, so that nothing is trained here
STORED = "stored"  # not drawn: the baseline's dense pictures, so that a change of the scores alone is seen apart
PROMPTS, COUNT = "held-out", 48
BATCH = 20  # neither all pictures nor a divisor of them: what depends on the place in a batch would show
PROTOCOL = "efflite0"
FID, KID = f"fid_{PROTOCOL}", f"kid_{PROTOCOL}"
METRICS = ("clip_score", "psnr", FID, KID)


@dataclass(frozen=True)
class Scores:
    """What is known of n pictures: CLIP scores [n], PSNR [n] in dB to the baseline's pictures (None of these
    themselves), features [n, d], and the whole set's FID and KID to the real pictures."""

    clip_score: np.ndarray
    features: np.ndarray
    fid: float
    kid: float
    psnr: np.ndarray | None = None


@cache
def specs() -> dict[str, RunSpec]:
    """The suite's runs by id."""
    return {spec.id: spec for spec in load_suite(SUITE, source(PROFILES[0]).revision)}


def revision() -> str:
    """Changes with the model, the prompts, the judge or the real pictures."""
    return specs()[RUNS["dense"]].revision


def task(name: str, schedule: Schedule, folder: Path, against: Path, count: int = COUNT, batch: int = BATCH) -> Task:
    """A run of the set. Its pictures go to `folder`; `against` holds the baseline's of the same run."""
    spec = replace(specs()[RUNS[name]], limit=count, prompts=(PROMPTS,), metrics=METRICS)
    context = RunStudio(spec, folder).context()
    learned = name == LEARNED
    plan = Plan(context.sampler, schedule, context.costs) if learned else method(spec.method).plan(context)
    return Task(spec, plan, PROMPTS, folder, against, batch)


def scores(
    schedule: Schedule, folder: Path, stored: Path, names: Collection[str], count: int = COUNT, batch: int = BATCH
) -> dict[str, Scores]:
    """Draw the runs in `names` into `folder` and score them; `stored` holds the baseline's pictures, a folder a run."""
    found = {}
    for name in names:
        run = "dense" if name == STORED else name
        against = stored / run
        task_ = task(run, schedule, against if name == STORED else folder / run, against, count, batch)
        tasks.score(task_)
        found[name] = _read(task_)
    return found


def _read(done: Task) -> Scores:
    data = json.loads((done.folder / f"{done.prompts}.json").read_text(encoding="utf-8"))
    cells, samples = data["metrics"], {name: np.array(values) for name, values in data["samples"].items()}
    paths = image_paths(done.folder / done.prompts, done.spec.limit)
    return Scores(
        samples["clip_score"],
        features.features(paths, features.PROTOCOLS[PROTOCOL], progress=False),
        cells[FID]["value"],
        cells[KID]["value"],
        samples.get("psnr"),
    )
