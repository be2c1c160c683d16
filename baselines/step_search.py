"""A control: a search over which calls to compute, by simulated annealing and then by hill climbing.

In the manner of BudCache (arXiv 2606.13496): a state is a set of kept calls, a move shifts one of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from baselines.plan import Plan, PlanContext
from baselines.search import Search, settings_of
from baselines.step_skip import spread
from dipgo import Schedule

SETTINGS = {
    "evaluations": 300,
    "population": 8,  # moves tried side by side, of which the best is taken or refused
    "temperature": 0.05,  # at the start, relative to the loss; it falls linearly
    "climbing": 0.4,  # the last share of the evaluations, at temperature 0 from the best
    "seed": 0,
}
FARTHEST = 3  # calls that a move shifts by


@dataclass(frozen=True)
class KeptCalls:
    """Sets of computed calls, int [count] in rising order from 0, as schedules that skip all others."""

    context: PlanContext
    order: int

    def schedule(self, candidate: np.ndarray) -> Schedule:
        return self.plan(candidate).schedule

    def plan(self, candidate: np.ndarray) -> Plan:
        return self.context.skipping(candidate.tolist(), self.order)

    def moved(self, candidate: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One call but the first shifted to a free place; as it was where there is none."""
        kept = set(candidate.tolist())
        moves = [
            sorted(kept - {call} | {call + shift})
            for call in kept - {0}
            for shift in range(-FARTHEST, FARTHEST + 1)
            if 0 < call + shift < self.context.sampler.calls and call + shift not in kept
        ]
        return np.array(moves[rng.integers(len(moves))]) if moves else candidate


def plan(context: PlanContext) -> Plan:
    """Parameters: `calls` to compute; `order` of the forecast between them (0: hold, the default); `fitness`;
    `search`, whose settings and defaults are `SETTINGS`. The search starts from evenly spread calls."""
    settings = settings_of(context, SETTINGS)
    rng, budget = np.random.default_rng(settings["seed"]), settings["evaluations"]
    space = KeptCalls(context, context.params.get("order", 0))
    search = Search(space, context.fitness, budget)
    here = np.array(spread(context.param("calls"), context.sampler.calls))
    (loss,) = search.evaluate([here])
    while search.left:
        cooling = search.left / budget - settings["climbing"]
        temperature = settings["temperature"] * cooling / (1 - settings["climbing"])
        if temperature <= 0:
            loss, here = search.best
        tried = [space.moved(here, rng) for _ in range(min(settings["population"], search.left))]
        losses = search.evaluate(tried)
        best = int(np.argmin(losses))
        worse = (losses[best] - loss) / max(loss, math.ulp(0.0))
        if worse < 0 or (temperature > 0 and rng.random() < math.exp(-worse / temperature)):
            here, loss = tried[best], losses[best]
    return space.plan(search.best[1])
