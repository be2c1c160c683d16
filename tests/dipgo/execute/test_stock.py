"""Gates around the stock pipelines of diffusers: nothing changes where everything is computed, and a schedule for
another run is refused at the first call that does not fit."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import pytest
import torch

from dipgo import PartialTrajectory, Schedule, capture, costs_of, find_sites, gated
from dipgo.graph import named_inputs
from tests.helpers.stock import STOCK


class Seen:
    """A stock pipeline, its pictures, the timesteps of its calls, and the graph of the blocks that were found in it."""

    def __init__(self, kind: str) -> None:
        self.stock = STOCK[kind]()
        run = {"num_inference_steps": 4, **self.stock.run}
        inputs = capture(self.stock.pipeline, component=self.stock.component, **run)
        self.costs = costs_of(self.stock.denoiser, find_sites(self.stock.denoiser, inputs), inputs)
        self.timesteps: list[float] = []
        self.pictures = self.watched()

    @cached_property
    def schedule(self) -> Schedule:
        """Everything is computed, at the timesteps of this run."""
        dense = Schedule.dense(self.costs.graph.sites, len(self.timesteps) // self.stock.calls_per_step)
        return Schedule(dense.sites, dense.reuse, timesteps=self.timesteps[:: self.stock.calls_per_step])

    def watched(self, **changes) -> torch.Tensor:
        """Draw, and note the timesteps of all calls."""
        self.timesteps = []

        def note(module, args, kwargs):
            self.timesteps.append(float(torch.as_tensor(named_inputs(module, args, kwargs)["timestep"]).max()))

        handle = self.stock.denoiser.register_forward_pre_hook(note, with_kwargs=True)
        try:
            return self.stock.draw(**changes)
        finally:
            handle.remove()

    def gated(self, schedule: Schedule):
        return gated(self.stock.denoiser, self.costs.graph, schedule, calls_per_step=self.stock.calls_per_step)


@pytest.fixture(scope="module", params=STOCK)
def seen(request) -> Seen:
    return Seen(request.param)


def test_everything_computed_changes_no_bit_and_reuse_does(seen):
    with seen.gated(seen.schedule) as trace:
        assert torch.equal(seen.stock.draw(), seen.pictures)
    assert trace.ran.all()
    reuse = np.zeros_like(seen.schedule.reuse)
    reuse[1::2] = True
    with seen.gated(Schedule(seen.schedule.sites, reuse, timesteps=seen.schedule.timesteps)):
        pictures = seen.stock.draw()
    assert torch.isfinite(pictures).all() and not torch.equal(pictures, seen.pictures)


def refused(seen: Seen, **changes) -> None:
    """Check that this run is refused at its first call whose timestep is another."""
    expected = seen.schedule.timesteps.repeat(seen.stock.calls_per_step)
    with seen.gated(seen.schedule), pytest.raises(PartialTrajectory, match="came at timestep .* the schedule says"):
        seen.watched(**changes)
    came = np.array(seen.timesteps)  # those of calls that ran
    assert len(came) < len(expected) and np.allclose(came, expected[: len(came)])


def test_another_run_is_refused_at_the_call_that_does_not_fit(seen):
    for changes in seen.stock.others:
        refused(seen, **changes)
    if seen.stock.scheduler is not None:
        pipeline, stock = seen.stock.pipeline, seen.stock.pipeline.scheduler
        pipeline.scheduler = seen.stock.scheduler
        try:
            refused(seen)
        finally:
            pipeline.scheduler = stock
    assert torch.equal(seen.stock.draw(), seen.pictures)  # and nothing of it is left
