"""Ours beyond the paper: which calls to compute, and how to combine them into the others, learned together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from typing import Any

import numpy as np

from baselines.plan import Plan, PlanContext
from baselines.preparation import Estimate, Lesson, Pictures, Preparation, Step
from dipgo import Diffusion, LearnConfig, Schedule, learn_forecast
from dipgo.errors import DipgoError
from dipgo.state import State

BATCHES = 2  # as many pictures run together, unseen, as this many batches hold
EXAMPLES = (
    {"calls": 3, "learn": {"rounds": 1, "pictures": 2}},
    {"calls": 3, "unit": "layer", "learn": {"rounds": 0, "pictures": 1, "shared": True}},
)


@dataclass(frozen=True)
class Learning(LearnConfig, Pictures):
    """`dipgo.LearnConfig`, and which pictures to learn from."""

    @property
    def config(self) -> LearnConfig:
        """The part that `learn_forecast` takes."""
        return LearnConfig(**{each.name: getattr(self, each.name) for each in fields(LearnConfig)})


@dataclass(frozen=True)
class ForecastLearning(Lesson):
    """A forecast fitted to dense runs, from the gates of a starting plan on."""

    settings: Learning
    start: Callable[[PlanContext], Plan]
    """Gives the plan whose gates the learning starts from."""
    started_by: Mapping[str, Any]
    """The parameters that decide the starting plan."""
    needs: Mapping[str, Preparation] = field(default_factory=dict)

    folder, title = "forecasts", "forecast"

    def identity(self) -> dict[str, Any]:
        settings = asdict(self.settings)
        if not settings["shared"]:  # what was learned before there was this setting keeps its address
            del settings["shared"]
        return {**self.started_by, **settings}

    def macs(self, run: Estimate) -> float:
        tried = self.settings.tried(round(run.share * run.calls), run.branches)
        return self.settings.pictures * run.macs * (1 + tried * run.share)

    @property
    def total(self) -> int:
        return self.settings.rounds + 1

    def steps(self, context: PlanContext, state: State | None) -> Iterator[Step]:
        settings, studio = self.settings, context.studio
        pictures = studio.pictures(*settings.drawn(studio))
        plan = self.start(context)
        config = settings.config
        if config.together == LearnConfig.together:
            config = replace(config, together=BATCHES * studio.at_once)
        diffusion = Diffusion(context.denoiser, plan.sampler, studio.guidance)
        for learned in learn_forecast(config, diffusion, plan.costs.graph, plan.schedule, pictures, state):
            yield Step({"loss": learned.loss}, learned.state, partial(_result, learned.schedule))

    def read(self, result: Mapping[str, Any]) -> Schedule:
        return Schedule.from_dict(result["schedule"])


def _result(schedule: Schedule, log: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    return {"schedule": schedule.to_dict(), "losses": [shown["loss"] for shown in log]}


@dataclass(frozen=True)
class Params:
    """The parameters of `plan`."""

    calls: int
    """How many calls are computed."""
    learn: Learning = Learning()
    """The settings of the learning."""
    unit: str = "call"
    """What is forecast: whole calls, or every "layer" within the blocks, where what lies around the layers runs in
    every call and K values of each layer are remembered."""


def prepares(params: Params) -> tuple[Preparation, ...]:
    """The forecast is learned."""
    asked = {"calls": params.calls} | ({} if params.unit == "call" else {"unit": params.unit})
    return (ForecastLearning(params.learn, partial(_start, params=params), asked),)


def plan(context: PlanContext, params: Params) -> Plan:
    """Compute the learned calls, and combine their outputs into the others by the learned coefficients."""
    (forecast,) = prepares(params)
    return replace(_start(context, params), schedule=forecast.make(context))


def _start(context: PlanContext, params: Params) -> Plan:
    context = context.at_unit(params.unit)
    computed = reaching(params.calls, context.sampler.calls)
    schedule = Schedule.skip_calls(context.graph.sites, context.sampler.calls, computed)
    return Plan(context.sampler, schedule, context.costs)


def reaching(calls: int, total: int) -> list[int]:
    """Return `calls` of all calls, evenly spread from the first one on; only the last gap is half as long, because
    nothing mends what goes wrong in it."""
    if not 1 <= calls <= total:
        raise DipgoError(f"calls={calls}; it must lie between 1 and {total}")
    last = min(total - 1, total - total / (2 * calls))
    return np.linspace(0, last, calls).round().astype(int).tolist()
