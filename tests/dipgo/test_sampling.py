from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_map

from dipgo import Diffusion, DipgoError, Inputs, Sampler, Schedule, gated, initial_noise, picture_seeds, rollout
from dipgo.families import DIT, PIXART, SD15
from tests.conftest import SD_SCHEDULER

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


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_a_step_count_that_the_noise_schedule_lacks_is_refused(steps):
    with pytest.raises(DipgoError, match=str(steps)):
        Sampler("ddim", SD_SCHEDULER, steps)


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
def test_conditioning_of_other_rows_than_the_guidance_takes_is_refused(family, rows, guidance, takes):
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
