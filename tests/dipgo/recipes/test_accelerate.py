"""`accelerate` around stock pipelines: the same pictures as the gates alone, and refusals before anything stale."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch

from dipgo import Schedule, accelerate, gated, trace_graph
from dipgo.errors import DipgoError
from dipgo.families.watch import capture, costs_of
from dipgo.recipes.accelerate import recipe_of
from dipgo.recipes.record import draw, record
from tests.helpers.pipelines import stable_diffusion

STEPS = 5
RUN = {"num_inference_steps": STEPS, "guidance_scale": 4.0, "output_type": "np"}


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    pipe = stable_diffusion()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def recipe(pipe):
    return made(pipe, STEPS)


def made(pipe, steps, sites=("",)):
    run = record(pipe, "unet", "a fox", 0, {**RUN, "num_inference_steps": steps})
    costs = costs_of(pipe.unet, sites, capture(pipe, "a fox", **RUN))
    reuse = np.zeros((steps, len(sites)), dtype=bool)
    reuse[1::2] = True
    return recipe_of(pipe, "unet", run.form, costs, Schedule(sites, reuse, timesteps=run.timesteps))


def test_pictures_are_those_of_the_gates(pipe, recipe):
    dense = draw(pipe, "a fox", 3, RUN)
    with accelerate(pipe, recipe) as run:
        pictures = [draw(pipe, "a fox", 3, RUN) for _ in range(2)]
    with gated(pipe.unet, trace_graph(pipe.unet, ("",), capture(pipe, "a fox", **RUN)), recipe.schedule):
        expected = draw(pipe, "a fox", 3, RUN)
    assert all(np.array_equal(picture, expected) for picture in pictures) and not np.array_equal(expected, dense)
    assert np.array_equal(draw(pipe, "a fox", 3, RUN), dense)
    spent = run.report()["unet"]
    assert (spent["runs"], spent["calls"], spent["calls_run"]) == (2, 10, 6)
    assert spent["macs"] / spent["macs_dense"] == pytest.approx(0.6) and 0 < spent["seconds"] <= spent["seconds_run"]
    assert "2 runs; 6 of 10 calls" in str(run) and "#.#.#" in str(run)


@pytest.mark.parametrize(
    "sites",
    [("down_blocks.0", "mid_block", "up_blocks.3"), ("down_blocks.0.resnets.0:delta", "mid_block.resnets.0:delta")],
)
def test_blocks_and_deltas_are_gated_as_well(pipe, sites, tmp_path):
    recipe = made(pipe, STEPS, sites)
    recipe.save_pretrained(tmp_path)
    with accelerate(pipe, str(tmp_path)) as run:
        picture = draw(pipe, "a fox", 3, RUN)
    with gated(pipe.unet, trace_graph(pipe.unet, sites, capture(pipe, "a fox", **RUN)), recipe.schedule):
        assert np.array_equal(draw(pipe, "a fox", 3, RUN), picture)
    spent = run.report()["unet"]
    assert (spent["sites"], spent["sites_run"]) == (5 * len(sites), 3 * len(sites))
    full = recipe.macs["full"]
    assert 0 < full[1] < full[0] and spent["macs"] == pytest.approx(full[1])


def _forwards(pipe, **run):
    """The denoiser's own calls until the run is refused, and what the refusal says."""
    count = []
    handle = pipe.unet.register_forward_hook(lambda *_: count.append(1))
    try:
        with pytest.raises(DipgoError) as refused:
            draw(pipe, "a fox", 0, {**RUN, **run})
    finally:
        handle.remove()
    return len(count), str(refused.value)


@pytest.mark.parametrize(
    ("run", "says"),
    [
        ({"num_inference_steps": 10}, "made for 5 timesteps, but the scheduler is set to 10"),
        ({"num_inference_steps": 4}, "made for 5 timesteps, but the scheduler is set to 4"),
        ({"guidance_scale": 1.0}, "made for 2 guidance branches in a call, but this run has 1"),
        ({"timesteps": [900, 700, 500, 300, 101]}, "timestep 0 at 801, but the scheduler is set to 900"),
    ],
)
def test_another_run_is_refused_before_its_first_call(pipe, recipe, run, says):
    if "timesteps" in run:
        pipe.scheduler, stock = diffusers.DDPMScheduler.from_config(pipe.scheduler.config), pipe.scheduler
        recipe = made(pipe, STEPS)
    try:
        with accelerate(pipe, recipe):
            forwards, reason = _forwards(pipe, **run)
            assert forwards == 0 and says in reason and "\n" not in reason
            assert np.isfinite(draw(pipe, "a fox", 0, RUN)).all()  # and the right run still works
    finally:
        if "timesteps" in run:
            pipe.scheduler = stock


def test_another_pipeline_is_refused_at_once(pipe, recipe):
    stock = pipe.scheduler
    try:
        pipe.scheduler = diffusers.DDIMScheduler.from_config(stock.config, beta_end=0.02)
        with pytest.raises(DipgoError, match="DDIMScheduler with beta_end = 0.012, not 0.02"), accelerate(pipe, recipe):
            pass
        pipe.scheduler = diffusers.PNDMScheduler.from_config(stock.config)
        with pytest.raises(DipgoError, match="scheduler DDIMScheduler, but this is PNDM"), accelerate(pipe, recipe):
            pass
    finally:
        pipe.scheduler = stock


def test_other_weights_warn(pipe, recipe, caplog):
    weight = next(pipe.unet.parameters())
    with torch.no_grad():
        weight.add_(1)
    try:
        with accelerate(pipe, recipe):
            pass
    finally:
        with torch.no_grad():
            weight.sub_(1)
    assert "learned with other weights" in caplog.text


def test_each_run_takes_the_recipe_for_its_timesteps(pipe, recipe, tmp_path):
    recipe.save_pretrained(tmp_path)
    made(pipe, 7).save_pretrained(tmp_path)
    singles = {}
    for steps in (5, 7):
        with accelerate(pipe, made(pipe, steps)):
            singles[steps] = draw(pipe, "a fox", 1, {**RUN, "num_inference_steps": steps})
    with accelerate(pipe, tmp_path) as run:
        for steps in (5, 7, 7, 5):
            picture = draw(pipe, "a fox", 1, {**RUN, "num_inference_steps": steps})
            assert np.array_equal(picture, singles[steps])
        forwards, reason = _forwards(pipe, num_inference_steps=6)
        assert forwards == 0 and "and 1 more recipes do not fit" in reason
    assert run.report()["unet"]["calls"] == 24


def test_a_run_that_was_broken_off_leaves_nothing(pipe, recipe, caplog):
    def broken_off(after):
        def stop(pipe, step, timestep, kwargs):
            if step == after:
                raise KeyboardInterrupt
            return kwargs

        with pytest.raises(KeyboardInterrupt):
            draw(pipe, "a dog", 0, {**RUN, "callback_on_step_end": stop})

    with accelerate(pipe, recipe):
        expected = draw(pipe, "a fox", 2, RUN)
        for after in (0, 1, 3):
            broken_off(after)
            assert np.array_equal(draw(pipe, "a fox", 2, RUN), expected)
        broken_off(1)
    assert "2 times of 5" in caplog.text  # a warning, since the context must not take a finished picture with it
