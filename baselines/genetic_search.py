"""Genetic search (Table 6): schedules at the asked ratio, bred by DEAP's operators."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from deap import base, tools
from deap.algorithms import varAnd

from baselines.plan import Plan, PlanContext
from baselines.search import Search, begin, end

SETTINGS = {
    "evaluations": 1000,
    "population": 50,
    "tournament": 3,
    "crossover": 0.9,  # share of pairs that are crossed, at two points
    "flips": 2.0,  # bits of a child that mutation flips on average
    "seed": 0,
}


class Loss(base.Fitness):
    weights = (-1.0,)


class Individual(list):
    """The bits of a schedule; `fitness` is what DEAP's operators read and void."""

    def __init__(self, bits: np.ndarray) -> None:
        super().__init__(bits.tolist())
        self.fitness = Loss()


def plan(context: PlanContext) -> Plan:
    """Parameters: `ratio` of the MACs to prune; `fitness`; `search`, whose settings and defaults are `SETTINGS`.

    Parents are drawn by tournament, children are crossed at two points, mutated by bit flips and repaired to the
    ratio; of parents and children the best survive.
    """
    search, settings = begin(context, SETTINGS)
    rng, size = np.random.default_rng(settings["seed"]), settings["population"]
    breeding = base.Toolbox()
    breeding.register("clone", lambda parent: Individual(np.array(parent)))
    breeding.register("mate", tools.cxTwoPoint)
    breeding.register("mutate", tools.mutFlipBit, indpb=settings["flips"] / search.space.size)
    with _seeded(settings["seed"]):
        population = [Individual(search.space.random(rng)) for _ in range(min(size, search.left))]
        _evaluate(search, population)
        while search.left:
            parents = tools.selTournament(population, min(size, search.left), settings["tournament"])
            children = varAnd(parents, breeding, settings["crossover"], 1.0)
            for child in children:
                child[:] = search.space.repair(np.array(child), rng).tolist()
            _evaluate(search, children)
            population = tools.selBest(population + children, size)
    return end(context, search)


def _evaluate(search: Search, individuals: list[Individual]) -> None:
    losses = search.evaluate([np.array(individual) for individual in individuals])
    for individual, loss in zip(individuals, losses, strict=True):
        individual.fitness.values = (loss,)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """DEAP draws from Python's own generator: seeded here, and left as it was."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)
