"""What every method gets to see, and what it answers with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torch import Tensor, nn

from dipgo import (
    BlockGraph,
    CostModel,
    Forecast,
    Inputs,
    Policy,
    Sampler,
    Schedule,
    Unit,
    deciding,
    family_of,
    gated,
    ruled,
)
from dipgo.errors import DipgoError


@dataclass(frozen=True)
class Plan:
    """How to sample: a sampler and a schedule, with the cost model of the schedule's sites."""

    sampler: Sampler
    schedule: Schedule
    """It carries the sampler's timesteps, so that it is refused wherever it is run under another one. With a policy it
    is a typical one: what pictures to learn from were given."""
    costs: CostModel
    policy: Policy | None = None
    """Decides each picture's schedule while it is drawn. None where all pictures follow `schedule`."""

    def __post_init__(self) -> None:
        self.costs.graph.check(self.schedule)
        object.__setattr__(self, "schedule", self.sampler.stamped(self.schedule))

    @contextmanager
    def applied(self, denoiser: nn.Module) -> Iterator[list[Schedule]]:
        """Skip by this plan inside the context; yield the list that gets what a policy decides, one schedule for each
        sampler run. Under a policy draw one picture at a time, since it decides about a whole batch at once."""
        if self.policy is None:
            with gated(denoiser, self.costs.graph, self.schedule):
                yield []
        else:
            with deciding(denoiser, self.costs.graph, self.schedule, self.policy) as decided:
                yield decided


class Fitness(Protocol):
    """The consistency loss of schedules on a set of calibration pictures, one value a schedule; lower is better.

    A schedule is evaluated once, however often it is asked for.
    """

    evaluations: int
    """The number of schedules asked for so far."""

    def __call__(self, schedules: Sequence[Schedule]) -> list[float]: ...


class NeedsPictures(DipgoError):
    """A method cannot plan before it has seen pictures, and there are none here."""


class Studio:
    """What a method may ask the harness for beyond the denoiser: pictures to learn from, and results that are kept.

    This one has no pictures and raises `NeedsPictures`; it serves methods that plan by themselves.
    """

    guidance: float = 1.0
    """The guidance scale as the sampling loop takes it: above 1 there are two branches."""
    at_once: int = 1
    """How many pictures fit in one batch."""

    def _refuse(self) -> NeedsPictures:
        return NeedsPictures("this method needs pictures or another run, and there are none here; measure it by a run")

    def plan_of(self, run: str) -> Plan:
        """Return the plan of another run of the suite, by its id."""
        raise self._refuse()

    def taught(self, lesson: Any, context: PlanContext) -> Mapping[str, Any]:
        """Return the result of a `preparation.Lesson`, kept from before or learned now."""
        raise self._refuse()

    def fitness(self, search: Any) -> AbstractContextManager[Fitness]:
        """Return a context that gives the fitness that a `search.ScheduleSearch` minimises. Leaving it without an error
        marks the search as finished."""
        raise self._refuse()

    def captions(self, prompts: str) -> list[str]:
        """Return the captions of a prompt set."""
        raise self._refuse()

    def pictures(self, captions: Sequence[str], seeds: Sequence[int]) -> Inputs:
        """Return noise and conditioning of one picture for each caption and seed."""
        raise self._refuse()

    def images(self, captions: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """Return the dense run's images [n, 3, h, w] of these captions and seeds, white at 1 and black at 0."""
        raise self._refuse()

    def decode(self, latents: Tensor) -> Tensor:
        """Return the images [n, 3, h, w] of latents, differentiably."""
        raise self._refuse()


@dataclass(frozen=True)
class PlanContext:
    """What a method plans for."""

    denoiser: nn.Module
    costs: CostModel
    """Block graph and MACs, at first of the family's own blocks."""
    sampler: Sampler
    """The run's own sampler."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """The run's parameters of the method, as its suite gives them."""
    studio: Studio = field(default_factory=Studio)

    @property
    def graph(self) -> BlockGraph:
        """The graph of the sites that `costs` counts."""
        return self.costs.graph

    def dense(self) -> Plan:
        """Return the plan that computes everything."""
        return Plan(self.sampler, Schedule.dense(self.graph.sites, self.sampler.calls), self.costs)

    def skipping(self, computed: Sequence[int], order: int = 0) -> Plan:
        """Return the plan that runs the denoiser only in the calls in `computed`. Elsewhere its output is extrapolated
        by a polynomial of degree `order`; 0 repeats the last output."""
        context = self.at_unit("call")
        schedule = Schedule.skip_calls(context.graph.sites, self.sampler.calls, computed)
        rule = Forecast(self.sampler.noise_ratios, order)
        return Plan(self.sampler, ruled(rule, context.graph, schedule), context.costs)

    def at_sites(self, sites: Sequence[str]) -> PlanContext:
        """Return the same context over other sites."""
        return replace(self, costs=family_of(self.denoiser).costs(self.denoiser, sites, self.costs.probe))

    def at_unit(self, unit: Unit) -> PlanContext:
        """Return the same context over the sites that the denoiser's family has of a unit."""
        sites = family_of(self.denoiser).sites(self.denoiser, unit)
        return self if sites == self.graph.sites else self.at_sites(sites)
