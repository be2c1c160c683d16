"""The choice among stock few-step configurations."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from baselines import PlanContext, method
from baselines.few_steps import GRIDS, LAST, Configuration
from baselines.preparation import NOISE_SEED
from baselines.tuned_steps import Params, StepTuning, Tuning, prepares
from dipgo import Diffusion, DipgoError, picture_seeds, rollout
from dipgo.state import State
from tests.helpers.studio import TinyStudio

CALLS = 4


class DrawingStudio(TinyStudio):
    """A studio whose dense pictures the model draws itself; it notes what it was asked for."""

    def __init__(self, context_of, **kwargs) -> None:
        super().__init__(**kwargs)
        self.context_of, self.asked, self.seeds = context_of, set(), set()

    def captions(self, prompts):
        self.asked.add(prompts)
        return super().captions(prompts)

    def images(self, captions, seeds):
        self.seeds |= set(seeds)
        context = self.context_of(self)
        with torch.no_grad():
            return self.decode(rollout(self.diffusion(context), self.pictures(captions, seeds)))

    def diffusion(self, context):
        return Diffusion(context.denoiser, context.sampler, self.guidance)


@pytest.fixture
def context(tiny, tiny_costs):
    text = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0))

    def of(studio):
        return PlanContext(tiny.denoiser, tiny_costs, tiny.sampler("ddim", 12), {}, studio)

    return of(DrawingStudio(of, conditioning=lambda rows: {"encoder_hidden_states": text.expand(rows, 6, 8)}))


def params(**tune):
    given = {"pictures": 2, "screened": 1, "finalists": 6, "solver": "deis-3", **tune}
    return {"calls": CALLS, "tune": given, "learn": {"rounds": 1, "pictures": 2}}


def test_the_configuration_nearest_to_the_dense_run_is_chosen(context):
    tuning: StepTuning = prepares(method("tuned_steps").read(params()))[1]
    *_, last = tuning.steps(context, None)
    result = json.loads(json.dumps(last.result([])))
    assert len(result["screened"]) + len(result["refused"]) == len(GRIDS) * len(LAST)
    assert set(result["final"]) == set(sorted(result["screened"], key=result["screened"].get)[-6:])
    account = tuning.account(result)["few_steps"]
    best = max(result["final"], key=result["final"].get)
    assert account["chosen"] == best and account["tried"] == len(result["screened"])
    assert "final_sigmas_type" in account["refused"]["deis-3, leading, zero"]

    context.studio.results["few_steps"] = result
    plan = method("tuned_steps").plan(
        PlanContext(context.denoiser, context.costs, context.sampler, params(), context.studio)
    )
    assert plan.sampler.name == best and plan.sampler.timesteps.tolist() == account["timesteps"]
    pictures, seeds = Tuning(pictures=2, screened=1).drawn(context.studio)
    dense = context.studio.images(pictures, seeds)
    diffusion = context.studio.diffusion(context)
    with torch.no_grad():
        drawn = context.studio.decode(
            rollout(
                type(diffusion)(diffusion.denoiser, plan.sampler, diffusion.guidance),
                context.studio.pictures(pictures, seeds),
            )
        )
    error = ((drawn * 255).round() - (dense * 255).round()).square().mean(dim=(1, 2, 3))
    assert (10 * torch.log10(255**2 / error)).mean().item() == pytest.approx(account["psnr_on_training"], abs=0.05)


def test_only_training_captions_and_their_noise_are_read(context):
    list(prepares(method("tuned_steps").read(params()))[1].steps(context, None))
    assert context.studio.asked == {"train"} and context.studio.seeds == set(picture_seeds(NOISE_SEED, range(2)))


def test_a_tuning_goes_on_after_a_stop_as_if_there_had_been_none(context):
    tuning = prepares(method("tuned_steps").read(params(solver="euler", finalists=30)))[1]
    whole = list(tuning.steps(context, None))
    assert len(whole) == tuning.total > 1
    state = json.loads(json.dumps(whole[0].state().data))
    resumed = list(tuning.steps(context, State({}, state)))
    assert [step.shown for step in resumed] == [step.shown for step in whole]
    assert resumed[-1].result([]) == whole[-1].result([])


@pytest.mark.parametrize(
    ("tune", "says"),
    [
        ({"screened": 3}, "tune.screened is 3; it must lie between 1 and"),
        ({"finalists": 0}, "tune.finalists is 0"),
        ({"solver": "diems"}, "unknown solver 'diems'"),
        ({"pictures": 99, "screened": 1}, "pictures is 99"),
    ],
)
def test_bad_settings_are_one_clear_line(context, tune, says):
    with pytest.raises(DipgoError, match=says):
        tuned = method("tuned_steps").read(params(**tune))
        list(prepares(tuned)[1].steps(context, None))


def test_a_dense_grid_of_its_own_start_is_a_fixed_method_as_well(context):
    given = {"calls": CALLS, "solver": "dpm-2m", "grid": "part"}
    plan = method("few_steps").plan(replace(context, params=given))
    assert plan.sampler == Configuration("dpm-2m", "part").sampler(context.sampler, CALLS)
    assert plan.sampler.timesteps[0] == context.sampler.timesteps[0] and plan.schedule.calls == CALLS
    with pytest.raises(DipgoError, match="take tuned_steps"):
        method("few_steps").plan(
            PlanContext(context.denoiser, context.costs, context.sampler, given | {"grid": "computed"})
        )
    assert Params(3).tune.solver is None
