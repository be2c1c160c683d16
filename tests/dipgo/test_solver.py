"""Solvers as tables: they run as the samplers do that they are read off."""

from __future__ import annotations

import pytest
import torch

from baselines.few_steps import LAST, Configuration, timesteps_of
from dipgo import Diffusion, DipgoError, Inputs, initial_noise, rollout
from dipgo.sampling import StockSampler
from dipgo.solver import Solver, TableSampler, rollout_solvers
from tests.conftest import SD_SCHEDULER

CALLS = 5


@pytest.fixture
def dense(tiny):
    return tiny.sampler("plms", 20)


@pytest.fixture
def inputs(tiny):
    text = torch.randn(6, 6, 8, generator=torch.Generator().manual_seed(0))
    return Inputs(initial_noise([1, 2, 3], (4, 8, 8)), {"encoder_hidden_states": text})


@pytest.mark.parametrize(
    ("solver", "grid"),
    [
        ("ddim", "trailing"),
        ("plms", "leading"),
        ("euler", "karras"),
        ("heun", "part"),
        ("dpm-2m", "lambdas"),
        ("dpm-3m", "beta"),
        ("dpm-2s", "linspace"),
        ("dpm-3s", "reach"),
        ("deis-2", "ays"),
        ("deis-3", "karras"),
        ("unipc-2-bh2", "exponential"),
        ("unipc-3-bh1", "computed"),
    ],
)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_table_draws_what_its_sampler_draws(tiny, dense, inputs, solver, grid, prediction):
    dense = type(dense)("plms", {**SD_SCHEDULER, "prediction_type": prediction}, 20)
    end = LAST[1] if solver.startswith("deis") or solver.endswith("bh1") else LAST[0]
    configuration = Configuration(solver, grid, end)
    computed = dense.timesteps[[0, 4, 9, 14, 18]]
    sampler, table = configuration.sampler(dense, CALLS, computed), configuration.solved(dense, CALLS, computed)
    assert table.calls == sampler.calls <= CALLS and Solver.from_dict(table.to_dict()) == table
    with torch.no_grad():
        drawn = rollout(Diffusion(tiny.denoiser, sampler, 3.0), inputs)
        kept = TableSampler("kept", dense.config, 1, solver=table)
        again = rollout(Diffusion(tiny.denoiser, kept, 3.0), inputs)
    beside = rollout_solvers(Diffusion(tiny.denoiser, dense, 3.0), [table, table], inputs)
    for other in (again, *beside):
        torch.testing.assert_close(other, drawn, rtol=1e-3, atol=2e-4 * float(drawn.abs().max()))


def test_solvers_side_by_side_keep_apart(tiny, dense, inputs):
    tables = [Configuration("deis-2", grid, "sigma_min").solved(dense, CALLS) for grid in ("karras", "part", "leading")]
    diffusion = Diffusion(tiny.denoiser, dense, 3.0)
    together = rollout_solvers(diffusion, tables, inputs)
    assert not torch.allclose(together[0], together[1], atol=1e-2)
    for table, drawn in zip(tables, together, strict=True):
        torch.testing.assert_close(rollout_solvers(diffusion, [table], inputs)[0], drawn, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rollout_solvers(diffusion, tables, inputs, 1), together, rtol=1e-4, atol=1e-4)


def test_what_is_no_table_is_refused(dense):
    with pytest.raises(DipgoError, match="clips its predictions"):
        Solver.of(type(dense)("ddim", {**SD_SCHEDULER, "thresholding": True}, CALLS))
    for timesteps, weights, says in (
        ((), (), "a solver of 0 calls"),
        ((3.0,), ((1.0, 0.0),), "needs 2 rows of 2 weights"),
        ((3.0,), ((1.0, 2.0), (1.0, 0.0)), "that comes later"),
        ((3.0,), ((1.0, 0.0), (float("nan"), 0.0)), "finite"),
    ):
        with pytest.raises(DipgoError, match=says):
            Solver(timesteps, weights)


@pytest.mark.parametrize(
    ("solver", "grid", "last", "says"),
    [
        ("ddim", "karras", "zero", "DDIMScheduler has no setting use_karras_sigmas"),
        ("ddim", "part", "zero", "DDIMScheduler takes no timesteps"),
        ("deis-2", "leading", "zero", "DEISMultistepScheduler has no setting final_sigmas_type"),
        ("unipc-2-bh1", "part", "zero", "must be finite numbers"),
        ("dies-2", "leading", "zero", "unknown solver 'dies-2'; did you mean deis-2"),
        ("deis-2", "leading", "nothing", "unknown end of the last step 'nothing'"),
    ],
)
def test_what_a_scheduler_does_not_take_is_refused_with_the_reason(dense, solver, grid, last, says):
    with pytest.raises(DipgoError, match=says):
        Configuration(solver, grid, last).solved(dense, CALLS)


def test_budgets_are_in_calls_and_grids_are_where_they_are_said_to_be(dense):
    heun = Configuration("heun", "part", "zero").sampler(dense, CALLS)
    assert heun.steps == 3 and heun.calls == CALLS and heun.charged_steps == CALLS
    plms = Configuration("plms", "leading").sampler(dense, CALLS)
    assert plms.steps == 4 and plms.calls == CALLS and plms.charged_steps == CALLS
    grid = timesteps_of("part", dense, CALLS)
    assert grid[0] == dense.timesteps[0] and set(grid) <= set(dense.timesteps.tolist())
    deis = Configuration("deis-2", "part", "sigma_min").sampler(dense, CALLS)
    assert deis.timesteps.tolist() == list(grid)
    ten = type(dense)("ddim", SD_SCHEDULER, 20)
    assert timesteps_of("ays", ten, 10)[::3] == (999, 645, 343, 24)
    with pytest.raises(DipgoError, match="as many timesteps that fall"):
        StockSampler("x", SD_SCHEDULER, 2, settings={"_class_name": "EulerDiscreteScheduler"}, grid=(3, 9))
