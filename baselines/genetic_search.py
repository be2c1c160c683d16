"""Genetic search (Table 6): schedules at the asked ratio, bred by DEAP's operators.

With the unit "layer", the search runs over attention and feed-forward layers, as that of ECAD does
(https://arxiv.org/abs/2506.15682). ECAD breeds a whole front of ratios at once; this search serves one ratio.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from deap import base, tools
from deap.algorithms import varAnd

from baselines.plan import Plan, PlanContext
from baselines.preparation import Preparation
from baselines.search import RatioParams, Search, Settings, ratio_search

Params = RatioParams
EXAMPLES = (
    {"ratio": 0.5, "search": {"evaluations": 4, "population": 2}, "fitness": {"images": 1}},
    {"ratio": 0.3, "unit": "layer", "search": {"evaluations": 4, "population": 2}, "fitness": {"images": 1}},
)


@dataclass(frozen=True)
class Breeding(Settings):
    """The settings of a genetic search."""

    tournament: int = 3
    """How many members a parent is the best of."""
    crossover: float = 0.9
    """The share of pairs that are crossed, at two points."""
    flips: float = 2.0
    """The number of bits of a child that mutation flips on average."""


class Loss(base.Fitness):
    """DEAP's fitness of one loss, which is minimised."""

    weights = (-1.0,)


class Individual(list):
    """The bits of a schedule; `fitness` is what DEAP's operators read and clear."""

    def __init__(self, bits: np.ndarray) -> None:
        super().__init__(bits.tolist())
        self.fitness = Loss()


def prepares(params: Params) -> tuple[Preparation, ...]:
    """Schedules are bred: parents are drawn by tournament; children are crossed at two points, mutated by bit flips and
    repaired to the ratio; the best of parents and children survive."""
    return (ratio_search("genetic_search", Breeding, params, _run),)


def plan(context: PlanContext, params: Params) -> Plan:
    """Follow the best schedule of the search."""
    return prepares(params)[0].make(context)


def _run(search: Search, settings: Breeding) -> None:
    rng, size = np.random.default_rng(settings.seed), settings.population
    breeding = base.Toolbox()
    breeding.register("clone", lambda parent: Individual(np.array(parent)))
    breeding.register("mate", tools.cxTwoPoint)
    breeding.register("mutate", tools.mutFlipBit, indpb=settings.flips / search.space.size)
    with _seeded(settings.seed):
        population = [Individual(search.space.random(rng)) for _ in range(min(size, search.left))]
        _evaluate(search, population)
        while search.left:
            parents = tools.selTournament(population, min(size, search.left), settings.tournament)
            children = varAnd(parents, breeding, settings.crossover, 1.0)
            for child in children:
                child[:] = search.space.repair(np.array(child), rng).tolist()
            _evaluate(search, children)
            population = tools.selBest(population + children, size)


def _evaluate(search: Search, individuals: list[Individual]) -> None:
    losses = search.evaluate([np.array(individual) for individual in individuals])
    for individual, loss in zip(individuals, losses, strict=True):
        individual.fitness.values = (loss,)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed Python's own generator, from which DEAP draws, and leave it as it was."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)
