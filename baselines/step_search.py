"""A control: a search over which calls to compute, by simulated annealing and then by hill climbing.

It works in the manner of BudCache (arXiv 2606.13496): a state is a set of kept calls, and a move shifts one of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from baselines.params import read
from baselines.plan import Fitness, Plan, PlanContext
from baselines.preparation import Preparation
from baselines.search import FitnessConfig, ScheduleSearch, Search, Settings
from baselines.step_skip import spread
from dipgo import Schedule

FARTHEST = 3  # calls that a move shifts by
EXAMPLES = ({"calls": 3, "order": 1, "search": {"evaluations": 4, "population": 2}, "fitness": {"images": 1}},)


@dataclass(frozen=True)
class Annealing(Settings):
    """The settings of a step search. In each round the best of `population` moves is taken or refused."""

    evaluations: int = 300
    population: int = 8
    temperature: float = 0.05
    """The temperature at the start, relative to the loss; it falls linearly."""
    climbing: float = 0.4
    """The last share of the evaluations, which have temperature 0 and start from the best."""


@dataclass(frozen=True)
class Params:
    """The parameters of `plan`."""

    calls: int
    """How many calls are computed."""
    order: int | None = None
    """The degree of the polynomial that forecasts between them; by default the last output is held."""
    search: Mapping = field(default_factory=dict)
    """The search's settings, by the names in `Annealing`."""
    fitness: FitnessConfig = field(default_factory=FitnessConfig)
    """What the search minimises."""


@dataclass(frozen=True)
class KeptCalls:
    """Sets of computed calls, int [count] in rising order from 0, as schedules that skip all others."""

    context: PlanContext
    order: int

    def schedule(self, candidate: np.ndarray) -> Schedule:
        return self.plan(candidate).schedule

    def plan(self, candidate: np.ndarray) -> Plan:
        """Return the plan that computes these calls."""
        return self.context.skipping(candidate.tolist(), self.order)

    def moved(self, candidate: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the calls with one of them, but not the first, shifted to a free place; unchanged where there is no
        such place."""
        kept = set(candidate.tolist())
        moves = [
            sorted(kept - {call} | {call + shift})
            for call in kept - {0}
            for shift in range(-FARTHEST, FARTHEST + 1)
            if 0 < call + shift < self.context.sampler.calls and call + shift not in kept
        ]
        return np.array(moves[rng.integers(len(moves))]) if moves else candidate


def prepares(params: Params) -> tuple[Preparation, ...]:
    """Sets of calls are searched, from evenly spread ones on."""
    settings = read(Annealing, params.search, "step_search.search")
    asked = {"calls": params.calls} | ({} if params.order is None else {"order": params.order})
    run = partial(_searched, params, settings)
    return (ScheduleSearch("step_search", params.search, settings, params.fitness, run, asked),)


def plan(context: PlanContext, params: Params) -> Plan:
    """Compute the best calls of the search."""
    return prepares(params)[0].make(context)


def _searched(params: Params, settings: Annealing, context: PlanContext, fitness: Fitness) -> Plan:
    rng, budget = np.random.default_rng(settings.seed), settings.evaluations
    space = KeptCalls(context, params.order or 0)
    search = Search(space, fitness, budget)
    here = np.array(spread(params.calls, context.sampler.calls))
    (loss,) = search.evaluate([here])
    while search.left:
        cooling = search.left / budget - settings.climbing
        temperature = settings.temperature * cooling / (1 - settings.climbing)
        if temperature <= 0:
            loss, here = search.best
        tried = [space.moved(here, rng) for _ in range(min(settings.population, search.left))]
        losses = search.evaluate(tried)
        best = int(np.argmin(losses))
        worse = (losses[best] - loss) / max(loss, math.ulp(0.0))
        if worse < 0 or (temperature > 0 and rng.random() < math.exp(-worse / temperature)):
            here, loss = tried[best], losses[best]
    return space.plan(search.best[1])
