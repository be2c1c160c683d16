"""A row under a policy, from its spec to its record: one picture a batch, and what was decided for each."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from baselines import Plan, method
from benchmarks.__main__ import main
from benchmarks.models import model as models
from benchmarks.models.generate import Pictures, image_paths, noise_seeds, sample, schedule_path
from benchmarks.models.macs import macs_cells
from benchmarks.prepare.costs import costs_of
from benchmarks.prepare.studio import RunStudio
from benchmarks.quality.pictures import load
from benchmarks.runs.tasks import captions_of
from benchmarks.specs import record
from benchmarks.specs.run import RunSpec
from benchmarks.speed import latency
from dipgo import DipgoError, Schedule

SUITE = """
[defaults]
model = "emoji-dit"
method = "dense"
scheduler = "ddim"
steps = 6
guidance = 2.0
resolution = 64
dtype = "float32"
prompts = ["classes"]
limit = 3
seed = 0
metrics = ["macs", "psnr"]
reference = "dense"
[[run]]
id = "dense"
[[run]]
id = "cached"
method = "first_block_cache"
[run.params]
ratio = 0.4
learn = { prompts = "classes", pictures = 2, rounds = 3 }
"""


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decided")
    (folder / "suite.toml").write_text(SUITE)
    where = ["--workspace", str(folder / "runs"), "--records", str(folder / "records"), "--workers", "1"]
    assert main(["run", str(folder / "suite.toml"), *where]) == 0
    return folder


def test_the_record_holds_what_was_decided_for_each_picture(bench):
    done = record.find(bench / "records", "cached")
    spec, digest = RunSpec.from_json(done.spec), done.digest
    pictures = image_paths(bench / "runs" / digest / "classes", 3)
    schedules = [Schedule.load(schedule_path(path)) for path in pictures]
    counts = Counter(schedule.digest for schedule in schedules)
    kept = [dict(each) for each in done.decided]
    counted = [each.pop("pictures") for each in kept]
    assert dict(zip([Schedule.from_dict(each).digest for each in kept], counted, strict=True)) == counts
    assert done.schedule is None and done.provenance["batch"] == 1

    context = RunStudio(spec, bench / "runs").context()
    plan = method(spec.method).plan(context)
    cells = [macs_cells(replace(plan, schedule=schedule), 2) for schedule in schedules]
    for name in ("macs_full", "pruned_ratio"):
        values = [each[name]["value"] for each in cells]
        cell = done.metrics["all"][name]
        assert cell["value"] == pytest.approx(np.mean(values))
        assert (cell["low"], cell["high"], cell["n"]) == (min(values), max(values), 3)
    found = done.prepared["threshold"]
    assert found["pruned"] >= 0.4 and found["threshold"] == plan.policy.threshold

    # The first picture is what `gated` draws by its schedule.
    model, captions = models.load(spec), captions_of(spec, "classes")
    fixed = Plan(plan.sampler, schedules[0], plan.costs)
    image = sample(model, fixed, captions[:1], noise_seeds(spec, 1), spec.guidance)
    assert latency.time_once(latency.Timed(model, plan, captions[0], spec.guidance))["denoiser"] > 0
    assert torch.equal((image.clamp(0, 1) * 255).round().to(torch.uint8), load(pictures[:1]))


def test_pictures_come_one_by_one_whatever_batch_is_asked(bench, tmp_path):
    done = record.find(bench / "records", "cached")
    spec = RunSpec.from_json(done.spec)
    plan, captions = method(spec.method).plan(RunStudio(spec, bench / "runs").context()), captions_of(spec, "classes")
    asked = Pictures(tmp_path, captions, noise_seeds(spec, 3), spec.guidance, 3, "three at once")
    drawn = asked.make(models.load(spec), plan)
    assert all(schedule_path(path).exists() for path in drawn)
    assert torch.equal(load(drawn), load(image_paths(bench / "runs" / done.digest / "classes", 3)))


def test_a_policy_has_no_loss_of_one_schedule(bench):
    spec = RunSpec.from_json(record.find(bench / "records", "cached").spec)
    plan = method(spec.method).plan(RunStudio(spec, bench / "runs").context())
    costs = costs_of(replace(spec, metrics=("macs", "search", "psnr")), plan, bench / "runs")
    assert "fitness" not in costs.cells and "decides while it draws" in costs.absent["fitness"]


def test_a_record_that_contradicts_what_was_decided_is_refused(bench):
    done = record.find(bench / "records", "cached")
    first = done.decided[0]
    for wrong, says in (
        ({"decided": ()}, "there is no schedule"),
        ({"schedule": {key: value for key, value in first.items() if key != "pictures"}}, "one for each"),
        ({"decided": [{**first, "pictures": 0}]}, "at least 1"),
        ({"decided": [{**first, "reuse": ["0"]}]}, "a row is"),
        ({"decided": [{**first, "reuse": ["1" * len(row) for row in first["reuse"]]}]}, "first row reuses"),
    ):
        with pytest.raises(DipgoError, match=says):
            replace(done, **wrong).validate("it")
