"""What every method gets to see, and what it answers with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from torch import nn

from dipgo import BlockGraph, CostModel, Forecast, Sampler, Schedule, family_of, ruled
from dipgo.errors import DipgoError
from dipgo.families import Unit


@dataclass(frozen=True)
class Plan:
    """How to sample: a sampler and a schedule, with the cost model of the schedule's sites."""

    sampler: Sampler
    schedule: Schedule
    costs: CostModel

    def __post_init__(self) -> None:
        self.costs.graph.check(self.schedule)
        if self.schedule.calls != self.sampler.calls:
            raise DipgoError(
                f"schedule has {self.schedule.calls} calls, but {self.sampler.name} at {self.sampler.steps} steps "
                f"makes {self.sampler.calls}; it was made for another step count or scheduler"
            )


class Fitness(Protocol):
    """The consistency loss of schedules on a set of calibration pictures, one value a schedule; lower is better.

    A schedule is evaluated once, whoever asks how often. `evaluations` counts the schedules asked for so far.
    """

    evaluations: int

    def __call__(self, schedules: Sequence[Schedule]) -> list[float]: ...


def _nothing_to_learn_from(plan: Plan, settings: Mapping[str, Any]) -> Schedule:
    raise DipgoError("this method learns from pictures, and there are none here")


@dataclass(frozen=True)
class PlanContext:
    """A denoiser with its block graph and costs, the run's own sampler, and the method's parameters.

    `train` gives the scores [calls, sites] of a pruner trained with the given settings for the sites of
    `settings["unit"]`; equal settings are trained once. `plan_of` gives the plan of another run of the suite,
    for methods that start from one. `fitness` is what searches minimise, by the run's `params["fitness"]`. `learn` fits
    a forecast to dense runs, from a plan's schedule on, with the given settings; equal settings are learned once.
    """

    denoiser: nn.Module
    costs: CostModel
    sampler: Sampler
    params: Mapping[str, Any]
    train: Callable[[Mapping[str, Any]], np.ndarray]
    plan_of: Callable[[str], Plan]
    fitness: Fitness
    learn: Callable[[Plan, Mapping[str, Any]], Schedule] = _nothing_to_learn_from

    @property
    def graph(self) -> BlockGraph:
        """The graph of the family's own blocks."""
        return self.costs.graph

    def param(self, name: str) -> Any:
        """A required parameter of the method, or one clear line."""
        if name not in self.params:
            raise DipgoError(f"the method needs the parameter {name!r}; set it in the run's params")
        return self.params[name]

    def dense(self) -> Plan:
        """Everything is computed."""
        return Plan(self.sampler, Schedule.dense(self.graph.sites, self.sampler.calls), self.costs)

    def skipping(self, computed: Sequence[int], order: int = 0) -> Plan:
        """Whole calls are skipped but for those in `computed`; of the last predictions a polynomial of that order is
        continued, so that 0 holds the last one."""
        context = self.at_unit("call")
        schedule = Schedule.skip_calls(context.graph.sites, self.sampler.calls, computed)
        rule = Forecast(self.sampler.noise_ratios, order)
        return Plan(self.sampler, ruled(rule, context.graph, schedule), context.costs)

    def at_sites(self, sites: Sequence[str]) -> PlanContext:
        """The same context over other sites."""
        return replace(self, costs=family_of(self.denoiser).costs(self.denoiser, sites, self.costs.inputs))

    def at_unit(self, unit: Unit) -> PlanContext:
        """The same context over the family's own sites of a unit."""
        sites = family_of(self.denoiser).sites(self.denoiser, unit)
        return self if sites == self.graph.sites else self.at_sites(sites)
