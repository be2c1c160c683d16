"""`learn`: exact where the truth is known, the same again, resumed, and refused before any work."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import dipgo
from dipgo.errors import DipgoError
from dipgo.recipes.fit import fit, spacings
from dipgo.recipes.learn import _Kept
from dipgo.recipes.record import draw, psnr, record
from dipgo.sampling import picture_seeds
from tests.helpers.pipelines import stable_diffusion

RUN = {"num_inference_steps": 6, "guidance_scale": 4.0, "output_type": "np"}
PROMPTS = ["a fox", "a dog", "two cats", "a hen"]


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    pipe = stable_diffusion()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_recording_knows_guidance_and_how_the_scheduler_answers(pipe):
    run = record(pipe, "unet", "a fox", 0, RUN)
    assert run.outputs.shape[:2] == (6, 2) and run.calls_per_step == 1 and len(run.grid) == 6
    assert np.allclose(run.guidance, [-3, 4], atol=1e-3)
    # DDIM's last latents: each prediction moves them by the change of the noise ratio, in the last latents' scale.
    alphas = pipe.scheduler.alphas_cumprod.double().numpy()
    after = [*run.timesteps[1:].astype(int), 0]
    ratio = np.sqrt((1 - alphas) / alphas)
    scale = np.sqrt(alphas[0])
    assert np.allclose(run.moved[:-1], scale * (ratio[after] - ratio[run.timesteps.astype(int)])[:-1], rtol=1e-2)


def _runs(calls=12, pictures=3):
    """Predictions on a line in time: a combination of the last two outputs gives any of them exactly."""
    rng, times = np.random.default_rng(0), np.arange(calls, dtype=float)
    runs = []
    for _ in range(pictures):
        start, slope = rng.normal(size=(2, 1, 2, 64))
        outputs = start + slope * times[:, None, None]
        guidance = np.tile([-3.0, 4.0], (calls, 1))
        runs.append(SimpleNamespace(outputs=outputs, guidance=guidance, moved=np.ones(calls), branches=2))
    return runs


def test_a_fit_finds_what_is_there():
    runs = _runs()
    found = fit(runs, runs, [0, 3, 7], memory=2)
    assert found.shape == (12, 1, 2, 2)
    for call, (new, old) in {5: (3, 0), 6: (3, 0), 9: (7, 3), 11: (7, 3)}.items():
        wanted = (call - old) / (new - old)
        assert np.allclose(found[call, 0], np.array([[wanted], [1 - wanted]]), atol=0.01)


def test_a_fit_makes_up_for_what_has_strayed():
    """All outputs are alike. The own runs' first one is too large, so that the gap's other calls are to give less."""
    dense, own = _runs(), _runs()
    for run, aim in zip(own, dense, strict=True):
        aim.outputs[:] = aim.outputs[0]
        run.outputs[:] = aim.outputs
        run.outputs[0] *= 1.3
    found = fit(dense, own, [0, 6], memory=1)
    assert np.allclose(1.3 * (1 + found[1:6, 0, 0].sum(axis=0)), 6, atol=1e-3)
    assert np.allclose(fit(dense, dense, [0, 6], memory=1)[1:6], 1, atol=1e-3)


@pytest.mark.parametrize(("count", "calls"), [(1, 4), (3, 4), (10, 51), (5, 1000)])
def test_spacings_are_sets_of_calls(count, calls):
    for computed in spacings(count, calls):
        assert len(computed) == count and computed[0] == 0 and computed[-1] < calls
        assert all(one < other for one, other in zip(computed, computed[1:], strict=False))


def test_learned_twice_it_is_the_same_and_an_interrupted_one_goes_on(pipe, tmp_path, monkeypatch):
    recipe = dipgo.learn(pipe, PROMPTS, 0.5, **RUN)
    assert recipe.computed_calls == 3 and recipe.quality["pictures"] == 1 and recipe.quality["steps"] == 3
    assert recipe.macs["full"][1] / recipe.macs["full"][0] == pytest.approx(0.5)
    made = []

    class Stopped(_Kept):
        def run(self, key, make):
            if len(made) == 7:
                raise KeyboardInterrupt
            return super().run(key, lambda: made.append(key) or make())

    with monkeypatch.context() as patch:
        patch.setattr("dipgo.recipes.learn._Kept", Stopped)
        with pytest.raises(KeyboardInterrupt):
            dipgo.learn(pipe, PROMPTS, 0.5, keep=tmp_path, **RUN)
        made.append("stop no more")
        again = dipgo.learn(pipe, PROMPTS, 0.5, keep=tmp_path, **RUN)
    assert len(made) > 8 and len(made) == len(set(made))  # none of the first seven was made again
    assert again.digest == recipe.digest and again.quality == recipe.quality
    with dipgo.accelerate(pipe, recipe) as run:
        draw(pipe, "a cow", 5, RUN)
    assert run.report()["unet"]["calls_run"] == 3
    assert dipgo.learn(pipe, PROMPTS, 0.5, seed=1, **RUN).digest != recipe.digest


@pytest.mark.parametrize(
    ("differs", "says"),
    [
        ({"budget": 1.0}, "budget is 1.0"),
        ({"budget": 0.0}, "budget is 0.0"),
        ({"budget": 0.95}, "computes all of the run's 6 calls"),
        ({"prompts": "a fox"}, "prompts must be a list"),
        ({"prompts": []}, "prompts must be a list"),
        ({"memory": 0}, "memory is 0"),
        ({"generator": None}, "give seed=..."),
        ({"component": "untet"}, "has no module 'untet'"),
        ({"num_inference_steps": 2}, "draw with at least 3 steps"),
        ({"keep": "/dev/null/runs"}, "give a folder that can be written"),
    ],
)
def test_bad_input_is_refused_in_one_line(pipe, differs, says):
    with pytest.raises(DipgoError) as refused:
        dipgo.learn(pipe, **{"prompts": PROMPTS[:1], "budget": 0.5, **RUN, **differs})
    assert says in str(refused.value) and "\n" not in str(refused.value)


def test_a_recipe_carries_over_to_other_steps(pipe):
    recipe = dipgo.learn(pipe, PROMPTS[:2], 0.5, **RUN)
    same = recipe.retimed(6)
    assert np.array_equal(same.schedule.reuse, recipe.schedule.reuse)
    assert np.allclose(same.schedule.coefficients, recipe.schedule.coefficients)
    longer = recipe.retimed(10)
    assert longer.computed_calls == 3 and longer.schedule.calls == 10 and "psnr" not in longer.quality
    assert longer.macs["full"][1] == pytest.approx(recipe.macs["full"][1])
    assert np.isfinite(longer.schedule.coefficients).all() and type(recipe).from_dict(longer.to_dict())
    with dipgo.accelerate(pipe, longer) as run:
        draw(pipe, "a cow", 5, {**RUN, "num_inference_steps": 10})
        with pytest.raises(DipgoError, match="made for 10 timesteps"):
            draw(pipe, "a cow", 5, RUN)
    assert run.report()["unet"]["calls_run"] == 3
    with pytest.raises(DipgoError, match="too few"):
        recipe.retimed(3)


def test_what_other_steps_lose_is_measured(pipe):
    recipe = dipgo.learn(pipe, PROMPTS[:2], 0.5, **RUN)
    before = f"carried over from 6 calls, where it had {recipe.quality['psnr']:.2f} dB"
    assert f"{before} to the dense run of these; not measured here" in str(recipe.retimed(10))
    longer = dipgo.measured(pipe, recipe.retimed(10), PROMPTS[2:], seed=4)
    run, seeds = {**RUN, "num_inference_steps": 10}, picture_seeds(4, range(2))
    with dipgo.accelerate(pipe, longer):
        ours = [draw(pipe, *picture, run) for picture in zip(PROMPTS[2:], seeds, strict=True)]
    dense = [draw(pipe, *picture, run) for picture in zip(PROMPTS[2:], seeds, strict=True)]
    wanted = np.mean([psnr(*pair) for pair in zip(ours, dense, strict=True)])
    assert longer.quality["psnr"] == pytest.approx(wanted) and longer.quality["steps"] == 3
    assert before in str(longer) and "not measured" not in str(longer)
    assert type(recipe).from_dict(longer.to_dict()).quality == longer.quality
    with pytest.raises(DipgoError, match="prompts must be a list"):
        dipgo.measured(pipe, longer, "a fox")
