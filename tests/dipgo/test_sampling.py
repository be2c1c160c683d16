from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    PNDMScheduler,
)
from torch.utils._pytree import tree_map

from dipgo import (
    Diffusion,
    DipgoError,
    Inputs,
    Sampler,
    Schedule,
    gated,
    initial_noise,
    picture_seeds,
    rollout,
    rollout_together,
)
from dipgo.families import DIT, PIXART, SD15
from tests.conftest import GUIDANCE, SD_SCHEDULER

CALLED = ("sample", "hidden_states", "timestep")


def test_plms_makes_51_calls_for_50_steps_and_is_charged_50(tiny):
    sampler = tiny.sampler("plms", 50)
    assert sampler.calls == 51 and sampler.charged_steps == 50
    assert sampler.call_steps.tolist() == [0, 1, *range(1, 50)]
    assert sampler.timesteps[1] == sampler.timesteps[2]


@pytest.mark.parametrize("name", ["ddim", "dpm", "lcm"])
def test_other_samplers_call_once_a_step(tiny, name):
    sampler = tiny.sampler(name, 50)
    assert sampler.calls == sampler.charged_steps == 50


def test_a_stride_leaves_calls_of_the_grid_out(tiny):
    grid = tiny.sampler("plms", 50)
    strided = tiny.sampler("plms", 50, stride=2)
    assert strided.timesteps.tolist() == grid.timesteps[::2].tolist()
    assert strided.charged_steps == 26


UNEVEN = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


@pytest.mark.parametrize("steps", [50, 100, 200])
@pytest.mark.parametrize("sigmas", UNEVEN)
@pytest.mark.parametrize("name", ["dpm", "unipc"])
def test_steps_that_round_to_one_timestep_are_all_charged(name, sigmas, steps):
    sampler = Sampler(name, {**SD_SCHEDULER, sigmas: True}, steps)
    assert sampler.calls == sampler.charged_steps == steps
    assert sampler.call_steps.tolist() == list(range(steps))


def test_uneven_sigmas_do_round_steps_to_one_timestep():
    rounded = Sampler("dpm", {**SD_SCHEDULER, "use_karras_sigmas": True}, 100).timesteps
    assert len(set(rounded.tolist())) < 100  # what the test above is about


@pytest.mark.parametrize(("steps", "calls"), [(1, 1), (2, 3), (3, 4), (20, 21)])
def test_plms_repeats_one_call_at_any_step_count(tiny, steps, calls):
    sampler = tiny.sampler("plms", steps)
    assert sampler.calls == calls and sampler.charged_steps == steps


FOREIGN = {
    "flow matching by Euler": FlowMatchEulerDiscreteScheduler(shift=3.0).config,
    "flow matching by Heun": FlowMatchHeunDiscreteScheduler().config,
    "flow matching as a file says it": {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000},
    "flow sigmas": DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction").config,
    "flow sigmas alone": {**SD_SCHEDULER, "use_flow_sigmas": True},
    "EDM": EDMEulerScheduler().config,
    "a consistency model": CMStochasticIterativeScheduler().config,
    "a prediction unheard of": {**SD_SCHEDULER, "prediction_type": "velocity"},
}


@pytest.mark.parametrize("name", ["ddim", "plms", "dpm", "unipc", "lcm"])
@pytest.mark.parametrize("model", FOREIGN)
def test_a_model_that_predicts_something_else_is_refused_in_one_line(model, name):
    with pytest.raises(DipgoError, match=f"^{name} samples models that predict noise") as raised:
        Sampler(name, dict(FOREIGN[model]), 4)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("made", [DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_any_noise_schedule_of_diffusers_is_taken(made, prediction):
    assert Sampler("ddim", made(prediction_type=prediction).config, 4).calls == 4


def test_a_schedule_made_for_another_sampler_is_refused(tiny):
    """All make 26 calls."""
    plms = tiny.sampler("plms", 25)
    schedule = plms.stamped(Schedule.skip_calls(("",), 26, range(0, 26, 2)))
    assert schedule.timesteps.tolist() == plms.timesteps.tolist()
    plms.check(schedule)
    trailing = {**SD_SCHEDULER, "timestep_spacing": "trailing"}
    others = [tiny.sampler("ddim", 26), tiny.sampler("dpm", 26), tiny.sampler("plms", 50, stride=2)]
    for other in [*others, Sampler("plms", trailing, 25)]:
        with pytest.raises(DipgoError, match="made for another sampler: its call 0 is at timestep 961") as raised:
            other.check(schedule)
        assert "\n" not in str(raised.value)
        with pytest.raises(DipgoError, match="made for another sampler"):
            rollout_together(tiny.diffusion(other), tiny.graph, [schedule], tiny.inputs)
    with pytest.raises(DipgoError, match="26 calls, but ddim at 25 steps makes 25"):
        tiny.sampler("ddim", 25).check(schedule)
    tiny.sampler("ddim", 26).check(replace(schedule, timesteps=None))  # nobody knows


@pytest.mark.parametrize(("rows", "guidance", "takes"), [(2, GUIDANCE, 4), (4, 1.0, 2), (1, GUIDANCE, 4), (1, 1.0, 2)])
def test_conditioning_of_other_rows_than_the_guidance_takes_is_refused(tiny, rows, guidance, takes):
    inputs = replace(tiny.inputs, conditioning={"added": {"encoder_hidden_states": torch.randn(rows, 6, 8)}})
    with pytest.raises(DipgoError, match=f"has {rows} rows, but 2 pictures at guidance {guidance:g} take {takes}"):
        rollout(tiny.diffusion(tiny.sampler(), guidance), inputs)


def test_inputs_repeat_each_picture(tiny):
    conditioning = {"text": torch.arange(4), "more": {"sizes": torch.arange(8).view(4, 2), "none": None, "scale": 2.0}}
    twice = Inputs(tiny.noise, conditioning, [7, 8]).repeated(2)
    assert len(twice) == 4 and twice.seeds == [7, 7, 8, 8]
    assert torch.equal(twice.noise, tiny.noise[[0, 0, 1, 1]])
    assert twice.conditioning["text"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert twice.conditioning["more"]["sizes"][:, 0].tolist() == [0, 0, 2, 2, 4, 4, 6, 6]
    assert twice.conditioning["more"]["none"] is None and twice.conditioning["more"]["scale"] == 2.0


def test_noise_depends_on_seed_and_prompt_index_alone():
    def noise(seed: int, indices: list[int]) -> torch.Tensor:
        return initial_noise(picture_seeds(seed, indices), (2, 4, 4))

    together = noise(3, [4, 5, 6])
    assert torch.equal(together[1:2], noise(3, [5]))
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(together, noise(4, [4, 5, 6]))


@pytest.mark.parametrize("name", ["ddim", "plms", "dpm", "lcm"])
def test_batch_size_does_not_change_an_image(tiny, name):
    sampler = tiny.sampler(name, 6)
    reuse = Schedule(tiny.graph.sites, tiny.random_reuse(sampler.calls, 5).numpy())
    seeds = picture_seeds(0, range(16))
    noise = initial_noise(seeds, (4, 8, 8))
    negative, positive = torch.randn(2, 16, 6, 8, generator=torch.Generator().manual_seed(0))

    def images(batch: int) -> torch.Tensor:
        parts = []
        for i in range(0, 16, batch):
            text = torch.cat([negative[i : i + batch], positive[i : i + batch]])
            with torch.no_grad(), gated(tiny.denoiser, tiny.graph, reuse):
                parts.append(
                    rollout(
                        tiny.diffusion(sampler),
                        Inputs(noise[i : i + batch], {"encoder_hidden_states": text}, seeds[i : i + batch]),
                    )
                )
        return torch.cat(parts)

    one, all_at_once = images(1), images(16)
    assert float((one - all_at_once).abs().max() / one.abs().max()) < 1e-5


def test_no_guidance_runs_one_branch(tiny):
    seen = []

    def denoiser(sample, timestep, return_dict):
        seen.append(len(sample))
        return (torch.zeros_like(sample),)

    rollout(Diffusion(denoiser, tiny.sampler(steps=2), 1.0), Inputs(tiny.noise, {}))
    assert seen == [2, 2]


@pytest.mark.parametrize(("name", "says"), [("ddmi", "did you mean ddim"), ("euler", "unknown scheduler")])
def test_an_unknown_scheduler_is_named(name, says):
    with pytest.raises(DipgoError, match=says):
        Sampler(name, SD_SCHEDULER, 10)


@pytest.mark.parametrize("steps", [0, -1, 1001, 2.5, None])
def test_a_step_count_that_the_noise_schedule_lacks_is_refused(steps):
    with pytest.raises(DipgoError, match=str(steps)):
        Sampler("ddim", SD_SCHEDULER, steps)


@pytest.mark.parametrize("stride", [0, -1, 11])
def test_a_stride_that_leaves_no_call_is_refused(stride):
    with pytest.raises(DipgoError, match=f"stride is {stride}"):
        Sampler("ddim", SD_SCHEDULER, 10, stride)


def test_a_run_is_repeatable(tiny):
    sampler = tiny.sampler("plms", 5)
    runs = []
    for _ in range(2):
        with torch.no_grad():
            runs.append(rollout(tiny.diffusion(sampler), tiny.inputs).numpy())
    assert np.array_equal(*runs)


@torch.no_grad()
@pytest.mark.parametrize(("rows", "guidance", "takes"), [(1, 4.0, 2), (2, 1.0, 1), (3, 4.0, 2), (1, 4.0, 4)])
@pytest.mark.parametrize("family", [DIT, PIXART, SD15], ids=lambda family: family.name)
def test_every_family_refuses_conditioning_of_other_rows(family, rows, guidance, takes):
    denoiser, sampler = family.tiny(), Sampler("ddim", SD_SCHEDULER, 2)
    noise = initial_noise(range(takes if guidance == 1 else takes // 2), (4, 8, 8))
    probe = {key: value for key, value in family.probe(denoiser).items() if key not in CALLED}

    def draw(rows):
        given = tree_map(lambda value: None if value is None else value.repeat(rows, *[1] * (value.ndim - 1)), probe)
        return rollout(Diffusion(denoiser, sampler, guidance), Inputs(noise, given))

    message = f"conditioning has {rows} rows, but {len(noise)} pictures at guidance {guidance:g} take {takes}"
    with pytest.raises(DipgoError, match=message):
        draw(rows)
    assert draw(takes).shape == noise.shape
