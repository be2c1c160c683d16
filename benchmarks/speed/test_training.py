"""Training: one step of the pruner, by the calls of its sampler and by what is gated."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.speed.cases import GUIDANCE, SEEDS, Case, zoo
from dipgo import Batch, Diffusion, Inputs, TrainConfig, train_pruner

ROUNDS = 3


def training_step(case: Case, unit: str) -> Callable[[], None]:
    """Return a call that makes one step: a sampler run of a picture forwards and backwards, and the update."""
    costs, dense = case.model.costs_of(unit), case.picture()
    batch = Batch(Inputs(case.noise, case.conditioning, SEEDS), dense)

    def step() -> None:
        config = TrainConfig(steps=1, checkpoint=False)
        for _ in train_pruner(
            config, Diffusion(case.denoiser, case.sampler, GUIDANCE), costs, iter([batch]), case.model.decode
        ):
            pass

    return step


@pytest.mark.benchmark(group="training: one step, by denoiser calls")
@pytest.mark.parametrize("calls", (5, 10, 20))
def test_step_by_calls(timed, calls):
    timed(training_step(zoo("emoji-sd", steps=calls), "output"), rounds=ROUNDS)


@pytest.mark.benchmark(group="training: one step of 10 calls, by sites")
@pytest.mark.parametrize(("model", "unit"), [("emoji-sd", "output"), ("emoji-sd", "delta"), ("emoji-dit", "output")])
def test_step_by_blocks(timed, model, unit):
    case = zoo(model, steps=10)
    timed(training_step(case, unit), rounds=ROUNDS, sites=len(case.model.costs_of(unit).graph.sites))
