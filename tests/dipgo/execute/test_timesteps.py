"""A schedule that says its timesteps is refused at the first call that comes at another one."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
import torch

from baselines import Plan
from dipgo import DipgoError, PartialTrajectory, Sampler, Schedule, gated, gated_together, rollout
from tests.conftest import SD_SCHEDULER

CALLS = 26
MADE_FOR = ("plms", CALLS - 1)
OTHERS = {
    "another scheduler": Sampler("ddim", SD_SCHEDULER, CALLS),
    "a scheduler of higher order": Sampler("dpm", SD_SCHEDULER, CALLS),
    "another spacing": Sampler("plms", {**SD_SCHEDULER, "timestep_spacing": "trailing"}, CALLS - 1),
    "another offset": Sampler("plms", {**SD_SCHEDULER, "steps_offset": 0}, CALLS - 1),
    "uneven sigmas": Sampler("dpm", {**SD_SCHEDULER, "use_karras_sigmas": True}, CALLS),
}


def differs_at(one: np.ndarray, other: np.ndarray) -> int:
    """The first call at which timesteps differ."""
    return int(np.flatnonzero(~np.isclose(one, other))[0])


@pytest.fixture
def calls(tiny):
    """The timesteps of the calls that the denoiser really made."""
    made = []
    handle = tiny.denoiser.register_forward_pre_hook(
        lambda module, args, kwargs: made.append(float(kwargs["timestep"][0])), with_kwargs=True
    )
    yield made
    handle.remove()


def contexts(tiny, schedule: Schedule) -> list:
    return [gated(tiny.denoiser, tiny.graph, schedule), gated_together(tiny.denoiser, tiny.graph, [schedule])]


@pytest.mark.parametrize("way", [0, 1], ids=["gated", "gated_together"])
@pytest.mark.parametrize("name", OTHERS)
def test_a_plan_is_refused_under_another_sampler_of_as_many_calls(tiny, tiny_costs, calls, name, way):
    reuse = np.zeros((CALLS, len(tiny.graph.sites)), dtype=bool)
    reuse[1::2] = True
    plan = Plan(tiny.sampler(*MADE_FOR), Schedule(tiny.graph.sites, reuse), tiny_costs)
    other = OTHERS[name]
    call = differs_at(plan.schedule.timesteps, other.timesteps)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(
            pytest.raises(PartialTrajectory, match=rf"call {call + 1} of 26 came .* the schedule says .*another sched")
        )
        stack.enter_context(contexts(tiny, plan.schedule)[way])
        rollout(tiny.diffusion(other), tiny.inputs)
    assert len(calls) <= call


@pytest.mark.parametrize("call", [0, 1, 4])
def test_the_call_that_differs_is_named_and_not_run(tiny, calls, call):
    sampler = tiny.sampler("ddim", 6)
    timesteps = sampler.timesteps.astype(float)
    timesteps[call] += 0.5
    schedule = replace(Schedule.dense(tiny.graph.sites, 6), timesteps=timesteps)
    for context in contexts(tiny, schedule):
        calls.clear()
        with torch.no_grad(), pytest.raises(PartialTrajectory, match=f"call {call + 1} of 6 came at timestep"), context:
            rollout(tiny.diffusion(sampler), tiny.inputs)
        assert calls == sampler.timesteps[:call].tolist()


@pytest.mark.parametrize("name", ["ddim", "plms", "dpm", "lcm", "unipc"])
def test_under_its_own_sampler_a_stamped_schedule_gives_the_same(tiny, name):
    sampler = tiny.sampler(name, 6)
    reuse = tiny.random_reuse(sampler.calls).numpy()
    plain = Schedule(tiny.graph.sites, reuse)
    drawn = []
    for schedule in (plain, sampler.stamped(plain)):
        with torch.no_grad(), gated(tiny.denoiser, tiny.graph, schedule):
            drawn.append(rollout(tiny.diffusion(sampler), tiny.inputs))
    assert torch.equal(*drawn)


@pytest.mark.parametrize("other", [("ddim", 26), ("dpm", 26), ("unipc", 26)])
def test_schedules_of_different_samplers_do_not_run_together(tiny, other):
    one = tiny.sampler(*MADE_FOR).stamped(Schedule.dense(tiny.graph.sites, CALLS))
    plain = replace(one, timesteps=None)
    another = tiny.sampler(*other).stamped(plain)
    call = differs_at(one.timesteps, another.timesteps) + 1
    with torch.no_grad(), pytest.raises(DipgoError, match=f"made for different samplers: call {call} is at"):
        gated_together(tiny.denoiser, tiny.graph, [plain, one, another]).__enter__()
    with torch.no_grad(), pytest.raises(PartialTrajectory, match="came at timestep"):
        with gated_together(tiny.denoiser, tiny.graph, [plain, one]):
            rollout(tiny.diffusion(tiny.sampler(*other)), tiny.inputs.repeated(2))
