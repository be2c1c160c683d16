"""What a reused site gives: held, extrapolated or fitted, by one mechanism."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from dipgo import (
    FAMILIES,
    RULES,
    BlockGraph,
    Diffusion,
    DipgoError,
    Forecast,
    Inputs,
    ReuseRule,
    Sampler,
    Schedule,
    gated,
    gated_together,
    initial_noise,
    rollout,
    ruled,
)
from dipgo.execute.values import combine
from tests.conftest import SD_SCHEDULER
from tests.helpers.contract import CALLS, UNITS, instance, relative

KEPT = [0, 2, 5, 6, 11]
TIMES = np.array([95.0, 90, 81, 70, 66, 60, 51, 42, 30, 21, 20, 8, 3])
WHOLE_CALL = BlockGraph(("",), (frozenset(),), frozenset({0}))


class Polynomial(nn.Module):
    """A denoiser whose output is a polynomial of the time that it is told, whatever its sample is."""

    def __init__(self, degree: int) -> None:
        super().__init__()
        self.powers = range(degree + 1)
        self.weight = nn.Parameter(torch.randn(degree + 1, 4, dtype=torch.double), requires_grad=False)
        self.runs = 0

    def forward(self, sample: torch.Tensor, timestep: float) -> torch.Tensor:
        output = sum(self.weight[power] * (timestep / 100) ** power for power in self.powers) + 0 * sample
        self.runs += 1
        return output


def outputs(denoiser: nn.Module, schedule: Schedule) -> list[torch.Tensor]:
    sample = torch.zeros(1, 4, dtype=torch.double)
    with torch.no_grad(), gated(denoiser, WHOLE_CALL, schedule):
        return [denoiser(sample, timestep=time) for time in TIMES]


def forecast(order: int, kept=KEPT) -> Schedule:
    return ruled(Forecast(TIMES, order), WHOLE_CALL, Schedule.skip_calls(("",), len(TIMES), kept))


@pytest.mark.parametrize("order", [1, 2])
def test_a_forecast_is_exact_for_a_denoiser_that_is_a_polynomial_of_its_order_in_time(order):
    kept = [0, 1, 2, 5, 6, 11]  # as many calls as the order takes come first
    wrong = outputs(Polynomial(order + 1), forecast(order, kept))
    denoiser = Polynomial(order)
    dense = outputs(denoiser, Schedule.dense(("",), len(TIMES)))
    found = outputs(denoiser, forecast(order, kept))
    torch.testing.assert_close(torch.stack(found), torch.stack(dense), rtol=1e-5, atol=1e-5)
    assert len(wrong) == len(found) and relative(found[-1], wrong[-1]) > 1e-3


def test_order_0_is_holding():
    hold = Schedule.skip_calls(("",), len(TIMES), KEPT)
    assert forecast(0).digest == hold.digest and forecast(0).coefficients is None
    assert forecast(1).digest != hold.digest


def test_two_calls_at_one_time_count_as_one():
    times = np.array([3.0, 2, 2, 1])
    coefficients = Forecast(times, 1)(np.array([[True], [True], [True], [False]]))
    assert coefficients[3, 0].tolist() == [1.0, 0.0]  # a line through one point
    coefficients = Forecast(times, 2)(np.array([[True], [True], [True], [False]]))
    assert coefficients[3, 0].tolist() == [2.0, 0.0, -1.0]


def test_memory_holds_as_many_outputs_as_the_rule_reads_and_no_more(remembered):
    for order in (0, 1, 2):
        denoiser, alive = Polynomial(2), []
        sample = torch.zeros(1, 4, dtype=torch.double)
        with torch.no_grad(), gated(denoiser, WHOLE_CALL, forecast(order)):
            for time in TIMES[:-1]:
                denoiser(sample, timestep=time)
                alive.append(remembered())
            denoiser(sample, timestep=TIMES[-1])
        assert max(alive) == order + 1
        assert denoiser.runs == len(KEPT)  # a forecast runs nothing


@pytest.fixture(scope="module", params=[(f, u) for f in FAMILIES for u in UNITS], ids=lambda p: f"{p[0].name}-{p[1]}")
def made(request):
    return instance(*request.param)


def some(made) -> list[Schedule]:
    """Arbitrary coefficients on schedules that kill some blocks, forecasts on one of whole calls, and holding."""
    times, rng = np.linspace(1, 0, CALLS), np.random.default_rng(0)
    skipping = Schedule.skip_calls(made.graph.sites, CALLS, [0, 2, 3])
    killing = [made.reuse(1), made.reuse(2, 0.8)]
    arbitrary = [Schedule(s.sites, s.reuse, 0.4 * rng.normal(size=(*s.reuse.shape, 3))) for s in killing]
    branched = [Schedule(s.sites, s.reuse, 0.4 * rng.normal(size=(*s.reuse.shape, 2, 2))) for s in killing[:1]]
    return [*arbitrary, *branched, *(ruled(Forecast(times, o), made.graph, skipping) for o in (1, 2)), killing[0]]


@torch.no_grad()
def test_soft_gates_of_zero_and_one_equal_the_hard_schedule_under_any_rule(made):
    for schedule in some(made)[4::-1]:
        hard = made.run(schedule)
        coefficients = torch.tensor(schedule.coefficients)
        soft = made.run(torch.tensor(schedule.reuse).float(), coefficients=coefficients)
        assert relative(soft, hard) < 1e-4
    held = made.run(Schedule(schedule.sites, schedule.reuse))  # of the last, which is far from it
    assert relative(held, hard) > 1e-3


@torch.no_grad()
def test_together_equals_one_by_one_under_any_rule(made):
    schedules = some(made)
    noise = initial_noise([5, 6], (4, 8, 8)).repeat_interleave(len(schedules), 0)

    def rows(value):
        if isinstance(value, dict):
            return {name: rows(item) for name, item in value.items()}
        return None if value is None else value.repeat_interleave(len(schedules), 0)

    with gated_together(made.denoiser, made.graph, schedules):
        sampler = Sampler("ddim", SD_SCHEDULER, CALLS)
        latents = rollout(Diffusion(made.denoiser, sampler, 3.0), Inputs(noise, rows(dict(made.conditioning))))
    found = latents.unflatten(0, (-1, len(schedules))).transpose(0, 1)
    for schedule, own in zip(schedules, found, strict=True):
        assert relative(own, made.run(schedule)) < 1e-4


def test_gradients_reach_coefficients_and_gates_with_checkpoints_and_without():
    made = instance(FAMILIES[0])
    schedule = some(made)[2]  # with coefficients for each branch
    for gates in (schedule, torch.tensor(schedule.reuse).float()):
        found = []
        for checkpoint in (False, True):
            coefficients = torch.tensor(schedule.coefficients).requires_grad_()
            soft = gates if isinstance(gates, Schedule) else gates.clone().requires_grad_()
            made.run(soft, backward=True, coefficients=coefficients, checkpoint=checkpoint)
            found.append((coefficients.grad, None if isinstance(soft, Schedule) else soft.grad))
        assert found[0][0].abs().max() > 0
        torch.testing.assert_close(found[0], found[1])


def test_a_schedule_with_coefficients_survives_json_and_is_canonical():
    schedule = forecast(2)
    again = Schedule.from_dict(json.loads(json.dumps(schedule.to_dict())))
    assert again.digest == schedule.digest
    np.testing.assert_array_equal(again.coefficients, schedule.coefficients)
    padded = np.concatenate([schedule.coefficients, np.zeros((len(TIMES), 1, 2))], axis=2)
    padded[0] = 7.0  # nothing is reused there
    assert Schedule(schedule.sites, schedule.reuse, padded).digest == schedule.digest


def test_each_guidance_branch_is_combined_by_its_own_coefficients():
    hold = Schedule.skip_calls(("",), 4, [0, 2])
    own = np.stack([np.full((4, 1, 1), 2.0), np.full((4, 1, 1), 3.0)], axis=3)
    schedule = Schedule(hold.sites, hold.reuse, own)
    again = Schedule.from_dict(json.loads(json.dumps(schedule.to_dict())))
    assert again.digest == schedule.digest and again.coefficients.shape == (4, 1, 1, 2)
    past = [(torch.ones(6, 3), torch.ones(6))]
    for value in combine(torch.tensor([[2.0, 3.0]]), past):
        assert value.reshape(6, -1)[:, 0].tolist() == [2, 2, 2, 3, 3, 3]
    with pytest.raises(DipgoError, match="5 rows does not hold 2 guidance branches"):
        combine(torch.ones(1, 2), [torch.ones(5)])


def test_branches_in_calls_of_their_own_are_combined_like_those_of_one_batch():
    own = np.array([2.0, 3.0]).reshape(1, 1, 1, 2).repeat(3, 0)
    schedule = Schedule(WHOLE_CALL.sites, np.array([[False], [True], [False]]), own)
    denoiser = Polynomial(1)
    with torch.no_grad(), gated(denoiser, WHOLE_CALL, schedule, calls_per_step=2):
        sample = torch.zeros(1, 4, dtype=torch.double)
        found = [denoiser(sample, timestep=time) for time in (30.0, 30.0, 20.0, 20.0, 10.0, 10.0)]
    torch.testing.assert_close(found[2:4], [2 * found[0], 3 * found[1]])


def test_coefficients_alike_in_all_branches_are_those_of_one():
    schedule = forecast(1)
    alike = np.repeat(schedule.coefficients[..., None], 2, axis=3)
    assert Schedule(schedule.sites, schedule.reuse, alike).digest == schedule.digest


def test_holding_leaves_no_coefficients_in_the_json():
    hold = Schedule.skip_calls(("",), 4, [0, 2])
    assert set(hold.to_dict()) == {"sites", "reuse"}
    assert Schedule(hold.sites, hold.reuse, np.ones((4, 1, 1))).digest == hold.digest


def test_bad_coefficients_and_orders_are_refused():
    hold = Schedule.skip_calls(("",), 4, [0, 2])
    with pytest.raises(DipgoError, match="shape"):
        Schedule(hold.sites, hold.reuse, np.ones((4, 2, 1)))
    with pytest.raises(DipgoError, match="for each guidance branch, K and branches"):
        Schedule(hold.sites, hold.reuse, np.ones((4, 1, 1, 0)))
    with pytest.raises(DipgoError, match="NaN"):
        Schedule(hold.sites, hold.reuse, np.full((4, 1, 1), np.nan))
    with pytest.raises(DipgoError, match="coefficients must be numbers"):
        Schedule.from_dict({**hold.to_dict(), "coefficients": [["x"]]})
    with pytest.raises(DipgoError, match="order"):
        Forecast(TIMES, 3)
    with (
        pytest.raises(DipgoError, match="coefficients have shape"),
        gated(Polynomial(1), WHOLE_CALL, hold, coefficients=torch.ones(3, 1, 2)),
    ):
        pass


@pytest.mark.parametrize(("name", "order"), [("hold", 0), ("linear", 1), ("quadratic", 2), ("learned", 1)])
def test_the_rules_have_names(name, order):
    hold = Schedule.skip_calls(("",), len(TIMES), KEPT)
    assert ruled(RULES[name].start(TIMES), WHOLE_CALL, hold).digest == forecast(order).digest
    assert RULES[name].learned == (name == "learned")


def test_a_new_rule_is_one_entry(monkeypatch):
    """The toy continues the last difference, whatever the times are: a linear rule in the number of the call."""

    def toy(times: np.ndarray):
        def rule(computed: np.ndarray) -> np.ndarray:
            coefficients = np.zeros((*computed.shape, 2))
            coefficients[:] = (2.0, -1.0)
            return coefficients

        return rule

    monkeypatch.setitem(RULES, "toy", ReuseRule(toy))
    schedule = ruled(RULES["toy"].start(TIMES), WHOLE_CALL, Schedule.skip_calls(("",), len(TIMES), KEPT))
    found = outputs(Polynomial(2), schedule)
    torch.testing.assert_close(found[7], 2 * found[6] - found[5])
    torch.testing.assert_close(found[12], 2 * found[11] - found[6])


def test_a_misspelt_rule_and_a_taken_name_are_refused():
    with pytest.raises(DipgoError, match="unknown reuse rule 'liner'; did you mean linear"):
        RULES["liner"]
    with pytest.raises(DipgoError, match="there is a reuse rule 'hold' already"):
        RULES["hold"] = ReuseRule(lambda times: Forecast(times, 0))


@pytest.mark.parametrize("odd", [np.inf, -np.inf, np.nan])
def test_a_forecast_needs_finite_times_and_holding_needs_none(odd):
    times = np.concatenate([[odd], TIMES[1:]])
    for order in (1, 2):
        with pytest.raises(DipgoError, match="that of call 0 is .*zero SNR"):
            Forecast(times, order)
    hold = Schedule.skip_calls(("",), len(TIMES), KEPT)
    assert ruled(Forecast(times, 0), WHOLE_CALL, hold).digest == hold.digest
