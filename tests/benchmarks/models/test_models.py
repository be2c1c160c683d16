from __future__ import annotations

import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from baselines import Plan
from benchmarks.models import model as models
from benchmarks.models.generate import sample
from benchmarks.models.macs import macs_cells
from benchmarks.models.model import Model
from benchmarks.speed import latency
from benchmarks.supply import pipelines
from dipgo import DipgoError, Sampler, Schedule, gated, picture_seeds, rollout
from dipgo.costs import RanMacs
from tests.helpers.pipelines import CLASSES, PIPELINES

GUIDANCE = 3.0


@pytest.fixture(scope="module", params=PIPELINES)
def model(request, tmp_path_factory) -> Model:
    """Written to disk and read back; its name is the sampler that it is run with."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    PIPELINES[request.param]().save_pretrained(folder)
    return models.prepared(request.param, pipelines.read(folder))


def dense(model: Model, unit: str = "output") -> Plan:
    sampler, costs = Sampler(model.name, model.scheduler_config, 4), model.costs_of(unit)
    return Plan(sampler, Schedule.dense(costs.graph.sites, sampler.calls), costs)


def test_every_pipeline_makes_pictures_that_do_not_depend_on_the_batch(model):
    captions, seeds = [CLASSES[1], CLASSES[0]], picture_seeds(0, [0, 1])
    images = sample(model, dense(model), captions, seeds, GUIDANCE)
    assert images.shape == (2, 3, 16, 16) and images.isfinite().all() and images.std() > 0.01
    alone = sample(model, dense(model), captions[1:], seeds[1:], GUIDANCE)
    torch.testing.assert_close(alone[0], images[1], atol=1e-4, rtol=0)


def test_captions_and_guidance_reach_the_denoiser(model):
    seeds = picture_seeds(0, [0])
    images = [sample(model, dense(model), [name], seeds, scale) for name in CLASSES[:2] for scale in (2.0, 6.0)]
    assert min((images[0] - other).abs().max() for other in images[1:]) > 1e-6


def test_all_weights_are_frozen_and_float32(model):
    parts = [part for part in model.pipeline.components.values() if isinstance(part, torch.nn.Module)]
    assert len(parts) >= 2 and not any(part.training for part in parts)
    weights = [weight for part in parts for weight in part.parameters()]
    assert not any(weight.requires_grad for weight in weights) and {weight.dtype for weight in weights} == {
        torch.float32
    }


def test_sites_of_both_units_are_counted(model):
    outputs, deltas = model.costs, model.costs_of("delta")
    assert model.costs_of("delta") is deltas
    assert not any(site.endswith(":delta") for site in outputs.graph.sites)
    assert all(site.endswith(":delta") for site in deltas.graph.sites)
    assert outputs.full.dense == pytest.approx(deltas.full.dense)


def test_full_macs_are_those_that_run(model):
    """At the text length of the pipeline's tokenizer, and with as many guidance branches as a call has."""
    branches = 1 if model.name == "lcm" else 2
    assert (model.branch_guidance(GUIDANCE) > 1) == (branches == 2) == (model.branches(GUIDANCE) == 2)
    sites, sampler = model.costs.graph.sites, dense(model).sampler
    reuse = np.random.default_rng(0).random((sampler.calls, len(sites))) < 0.4
    reuse[0] = False
    plan = Plan(sampler, Schedule(sites, reuse), model.costs)
    inputs = model.inputs_of([CLASSES[0]], [5], GUIDANCE)  # outside, since a text encoder multiplies as well
    with torch.no_grad(), gated(model.denoiser, model.costs.graph, plan.schedule), RanMacs() as ran:
        rollout(model.diffusion(sampler, GUIDANCE), inputs)
    assert macs_cells(plan, branches)["macs_full"]["value"] == pytest.approx(ran.total, rel=1e-6)


@pytest.mark.parametrize(
    ("computed", "charged"),
    [([0, 3, 5], 3), ([0, 1, 3], 3), ([0, 2, 3], 3), ([0, 1, 2, 3], 3), ([0, 1], 2), (range(6), 5)],
)
def test_the_paper_charges_the_steps_that_are_computed(tiny, tiny_costs, computed, charged):
    """PLMS at 5 steps makes 6 calls, of which 1 and 2 are one step."""
    plan = Plan(tiny.sampler("plms", 5), Schedule.skip_calls(tiny.graph.sites, 6, list(computed)), tiny_costs)
    cells = macs_cells(plan, branches=2)
    assert cells["macs_paper"]["value"] == pytest.approx(charged * tiny_costs.paper.dense)
    assert cells["macs_full"]["value"] == pytest.approx(2 * len(list(computed)) * tiny_costs.full.dense)


def test_the_paper_charges_the_dearer_call_of_a_step(tiny, tiny_costs):
    reuse = np.zeros((6, 9), dtype=bool)
    reuse[1, tiny.graph.sites.index("up_blocks.0")] = True
    plan = Plan(tiny.sampler("plms", 5), Schedule(tiny.graph.sites, reuse), tiny_costs)
    assert macs_cells(plan, branches=2)["macs_paper"]["value"] == pytest.approx(5 * tiny_costs.paper.dense)
    reuse[2] = reuse[1]
    plan = Plan(tiny.sampler("plms", 5), Schedule(tiny.graph.sites, reuse), tiny_costs)
    spent = tiny_costs.paper.per_call(tiny.graph.execute(plan.schedule))
    assert macs_cells(plan, branches=2)["macs_paper"]["value"] == pytest.approx(spent.sum() - min(spent[1:3]))


def test_latency_times_rows_of_any_model_in_turn(model, monkeypatch):
    monkeypatch.setattr(latency, "ROUNDS", 2)
    timed = latency.Timed(model, dense(model), CLASSES[0], GUIDANCE)
    seconds = latency.measure({"a": timed, "b": timed})
    assert set(seconds) == {"a", "b"} and len(seconds["a"]) == 2
    assert all(0 < once["denoiser"] < once["end_to_end"] for once in seconds["b"])


def test_a_class_that_the_model_does_not_know_is_named(tmp_path):
    PIPELINES["ddim"]().save_pretrained(tmp_path)
    model = models.prepared("dit", pipelines.read(tmp_path))
    with pytest.raises(DipgoError, match="unknown class 'dog fase'; did you mean dog face"):
        model.condition(["dog fase"], GUIDANCE)
    model.pipeline.labels["dog face"] = 4000
    with pytest.raises(DipgoError, match="class 'dog face' has label 4000"):
        model.condition(["dog face"], GUIDANCE)


def index(folder: Path, name: str) -> Path:
    (folder / pipelines.INDEX).write_text(json.dumps({"_class_name": name}))
    return folder


def test_a_folder_that_is_no_known_pipeline_is_refused(tmp_path):
    with pytest.raises(DipgoError, match="model_index.json"):
        pipelines.read(tmp_path)
    with pytest.raises(DipgoError, match="did you mean .*StableDiffusionPipeline"):
        pipelines.read(index(tmp_path, "StabelDiffusionPipeline"))


def test_a_denoiser_that_no_family_describes_is_refused(tmp_path):
    unet = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(4, 4),
        norm_num_groups=2,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(tmp_path)
    with pytest.raises(DipgoError, match="no family describes this UNet2DModel"):
        models.prepared("ddpm", pipelines.read(tmp_path))
