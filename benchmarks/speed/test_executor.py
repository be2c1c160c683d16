"""The executor: pruned runs against stock ones, and what `gated` itself costs."""

from __future__ import annotations

import pytest

from baselines import Plan
from benchmarks.speed.cases import Case, full_width, zoo
from dipgo import Schedule

RATIOS = (0.3, 0.5, 0.8, 0.9)
FEW = 3  # rounds of what takes long
FULL_WIDTH_CALLS = 6


@pytest.fixture(scope="module")
def emoji_sd() -> Case:
    return zoo("emoji-sd")


@pytest.fixture(scope="module")
def sd15() -> Case:
    return full_width("sd15", steps=FULL_WIDTH_CALLS)


def macs_speedup(plan: Plan) -> float:
    """Return how many times fewer MACs a picture takes, by the full convention: what a perfect executor would make of
    it."""
    return 1 / (1 - plan.costs.pruned_ratio(plan.schedule, "full"))


def note_efficiency(benchmark, plan: Plan) -> None:
    """Measured speedup / MACs speedup."""
    info, ideal = benchmark.extra_info, macs_speedup(plan)
    info["macs_speedup"] = ideal
    if "speedup" in info:
        info["speedup_efficiency"] = info["speedup"] / ideal


@pytest.mark.benchmark(group="executor: emoji-sd, denoiser")
def test_denoiser_dense(timed, emoji_sd):
    timed(emoji_sd.calls)


@pytest.mark.benchmark(group="executor: emoji-sd, denoiser")
@pytest.mark.parametrize("ratio", RATIOS)
def test_denoiser_pruned(timed, benchmark, emoji_sd, ratio):
    plan = emoji_sd.pruned(ratio)
    timed(lambda: emoji_sd.calls(plan), against=emoji_sd.calls)
    note_efficiency(benchmark, plan)


@pytest.mark.benchmark(group="executor: emoji-sd, text to image")
def test_picture_dense(timed, emoji_sd):
    timed(emoji_sd.picture, rounds=FEW)


@pytest.mark.benchmark(group="executor: emoji-sd, text to image")
@pytest.mark.parametrize("ratio", RATIOS)
def test_picture_pruned(timed, benchmark, emoji_sd, ratio):
    plan = emoji_sd.pruned(ratio)
    timed(lambda: emoji_sd.picture(plan), against=emoji_sd.picture, rounds=FEW)
    note_efficiency(benchmark, plan)


@pytest.mark.benchmark(group="executor: SD-1.5's shape, denoiser")
def test_denoiser_of_full_width(timed, benchmark, sd15):
    plan = sd15.pruned(0.8)
    timed(lambda: sd15.calls(plan), against=sd15.calls, rounds=FEW)
    note_efficiency(benchmark, plan)


@pytest.mark.benchmark(group="overhead: everything kept, by what is gated")
@pytest.mark.parametrize("unit", ("output", "delta"))
def test_everything_kept(timed, benchmark, emoji_sd, unit):
    """`overhead` is the seconds of the gated denoiser / those of the stock one."""
    costs = emoji_sd.model.costs_of(unit)
    plan = Plan(emoji_sd.sampler, Schedule.dense(costs.graph.sites, emoji_sd.sampler.calls), costs)
    timed(lambda: emoji_sd.calls(plan), against=emoji_sd.calls, sites=len(costs.graph.sites))
    if "speedup" in benchmark.extra_info:
        benchmark.extra_info["overhead"] = 1 / benchmark.extra_info["speedup"]


@pytest.mark.benchmark(group="overhead: forecasting what is reused, in place of holding it")
@pytest.mark.parametrize("order", (1, 2))
def test_forecasting(timed, benchmark, emoji_sd, order):
    """`forecast_overhead` is what a forecast call takes beyond one that holds / the seconds of a computed call."""
    computed = 3
    held = emoji_sd.plan("step_skip", calls=computed, mode="hold")
    forecast = emoji_sd.plan("step_skip", calls=computed, mode="forecast", order=order)
    timed(lambda: emoji_sd.calls(forecast), against=lambda: emoji_sd.calls(held))
    if "speedup" in benchmark.extra_info:
        beyond = 1 / benchmark.extra_info["speedup"] - 1  # of a run that is little but its computed calls
        benchmark.extra_info["forecast_overhead"] = beyond * computed / (emoji_sd.sampler.calls - computed)
