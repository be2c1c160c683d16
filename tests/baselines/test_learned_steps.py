"""Few steps that are learned: paths of least error, and solvers fitted to dense runs."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pytest
import torch

from baselines import PlanContext, method
from baselines.few_steps import Configuration
from baselines.gits_steps import euler_errors, shortest
from baselines.learned_steps import Unknowns, prepares
from dipgo import Diffusion, DipgoError, Inputs, initial_noise
from dipgo.solver import Solver, TableSampler
from dipgo.state import State
from tests.conftest import SD_SCHEDULER
from tests.helpers.studio import TinyStudio

CALLS = 3


@pytest.fixture
def context(tiny, tiny_costs):
    text = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0))
    studio = TinyStudio(conditioning=lambda rows: {"encoder_hidden_states": text.expand(rows, 6, 8)})
    return PlanContext(tiny.denoiser, tiny_costs, tiny.sampler("ddim", 10), {}, studio)


@pytest.mark.parametrize("gamma", [1.0, 1.3])
def test_the_path_has_the_least_error_of_all_paths(gamma):
    errors = np.triu(np.random.default_rng(1).random((7, 8)), 1)
    errors[errors == 0] = np.inf

    def cost(path):
        return sum(gamma**step * errors[a, b] for step, (a, b) in enumerate(zip(path, (*path[1:], 7), strict=True)))

    for calls in (1, 2, 3, 5):
        found = shortest(errors, calls, gamma)
        assert len(found) == calls
        assert cost(found) == pytest.approx(min(cost((0, *rest)) for rest in combinations(range(1, 7), calls - 1)))
    with pytest.raises(DipgoError, match="calls is 8; it must lie between 1 and 7"):
        shortest(errors, 8, gamma)


@pytest.mark.parametrize(
    ("name", "prediction"),
    [("ddim", "epsilon"), ("ddim", "v_prediction"), ("ddim", "sample"), ("plms", "epsilon"), ("plms", "v_prediction")],
)
def test_an_euler_step_is_a_ddim_step(tiny, name, prediction):
    """On a DDIM trajectory the next point is reached without any error; on PLMS's it is not."""
    sampler = type(tiny.sampler())(name, {**SD_SCHEDULER, "prediction_type": prediction}, 6)
    inputs = Inputs(initial_noise([1, 2], (4, 8, 8)), {"encoder_hidden_states": torch.ones(4, 6, 8)})
    timesteps, errors = euler_errors(Diffusion(tiny.denoiser, sampler, 2.0), inputs)
    assert timesteps.tolist() == list(dict.fromkeys(sampler.timesteps.tolist()))
    assert np.isinf(errors[np.tril_indices(6)]).all() and np.isfinite(errors[np.triu_indices(6, 1)]).all()
    small = np.diag(errors[:, 1:])
    assert (small < 1e-4).all() if name == "ddim" else small[1:].max() > 1e-3


def test_gits_runs_a_stock_solver_at_its_timesteps(context):
    plan = method("gits_steps").plan(
        PlanContext(
            context.denoiser, context.costs, context.sampler, {"calls": CALLS, "learn": {"pictures": 2}}, context.studio
        )
    )
    kept = context.studio.results["gits"]
    assert len(kept["timesteps"]) == CALLS and set(kept["timesteps"]) <= set(context.sampler.timesteps.tolist())
    assert plan.sampler.name == max(kept["final"], key=kept["final"].get)
    assert set(plan.sampler.timesteps.tolist()) <= set(kept["timesteps"])


def test_no_change_gives_the_first_table_and_a_change_carries_on(context):
    start = Configuration("deis-2", "karras", "sigma_min").solved(context.sampler, 4)
    unknowns = Unknowns(start, 2)
    same = unknowns.solver(np.zeros(unknowns.size))
    assert same.timesteps == start.timesteps
    np.testing.assert_allclose(same.weights, start.weights, atol=1e-6)
    assert unknowns.size == 4 + 4 + 7
    changed = np.array(unknowns.solver(np.eye(unknowns.size)[0]).weights) - np.array(start.weights)
    assert np.abs(changed[0]).max() == 0 and (np.abs(changed[1:]).max(axis=1) > 1e-3).all()


def test_a_solver_is_learned_and_goes_on_after_a_stop_bit_for_bit(context):
    given = {
        "calls": CALLS,
        "learn": {"pictures": 3, "rounds": 3},
        "tune": {"pictures": 2, "screened": 1, "solver": "euler"},
        "forecast": {"pictures": 2, "rounds": 1},
    }
    learning = prepares(method("learned_steps").read(given))[-1]
    whole = list(learning.steps(context, None))
    losses = [step.shown["loss"] for step in whole]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 0.5
    state = whole[1].state()
    resumed = list(learning.steps(context, State(state.tensors, json.loads(json.dumps(state.data)))))
    assert [step.shown["loss"] for step in resumed] == losses[1:]
    assert resumed[-1].result([]) == whole[-1].result([])

    plan = method("learned_steps").plan(
        PlanContext(context.denoiser, context.costs, context.sampler, given, context.studio)
    )
    assert isinstance(plan.sampler, TableSampler) and plan.sampler.calls == CALLS
    assert plan.sampler.solver == Solver.from_dict(json.loads(json.dumps(context.studio.results["solvers"]["solver"])))
