"""What random and genetic search share: bit strings of calls x sites, repaired to a ratio, within a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from baselines.plan import Fitness, Plan, PlanContext
from dipgo import CostModel, Schedule, UnreachableRatio
from dipgo.errors import DipgoError, unknown
from dipgo.pruner.select import TOLERANCE

ATTEMPTS = 20  # at a repair before a ratio counts as unreachable
SHAKE = 0.1  # share of the bits flipped at random before every further attempt
PATIENCE = 20  # rounds without a new schedule before a search ends below its budget


@dataclass(frozen=True)
class SearchSpace:
    """Schedules at a pruned ratio (paper's convention, within Algorithm 1's tolerance) as bit strings.

    A bit string is bool [(calls - 1) x sites], true where a block is reused; the first call has no bits.
    """

    costs: CostModel
    calls: int
    ratio: float

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise DipgoError(f"pruned ratio is {self.ratio}; it must lie strictly between 0 and 1")
        if self.calls < 2:
            raise DipgoError("a search needs at least 2 calls: the first one is always computed")

    @property
    def size(self) -> int:
        """Bits of a schedule."""
        return (self.calls - 1) * len(self.costs.graph.sites)

    def random(self, rng: np.random.Generator) -> np.ndarray:
        """Fair coins, repaired."""
        return self.repair(rng.random(self.size) < 0.5, rng)

    def schedule(self, bits: np.ndarray) -> Schedule:
        """The schedule of a bit string, with all that is not computed marked as reused, so that two bit strings that
        compute the same have one digest."""
        computed = self.costs.graph.execute(self._raw(bits)).computed
        computed[0] = True
        return Schedule(self.costs.graph.sites, ~computed)

    def repair(self, bits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The bits with random ones flipped until the pruned ratio is within the tolerance.

        Raises `UnreachableRatio` when no attempt got there.
        """
        nearest = math.inf
        for attempt in range(ATTEMPTS):
            tried = bits ^ (rng.random(self.size) < SHAKE) if attempt else bits.copy()
            gap = self._ratio(tried) - self.ratio
            if abs(gap) < TOLERANCE:
                return tried
            order = rng.permutation(np.flatnonzero(tried == (gap > 0)))
            start, size = 0, len(order)
            while start < len(order):
                piece = order[start : start + size]
                tried[piece] ^= True
                left = self._ratio(tried) - self.ratio
                if abs(left) < TOLERANCE:
                    return tried
                nearest = min(nearest, left, key=abs)
                if (left > 0) == (gap > 0):
                    start += size
                    continue
                tried[piece] ^= True  # too far: try with half of them, and in the end without this one
                start, size = (start + 1, 1) if size == 1 else (start, size // 2)
        raise UnreachableRatio(
            f"no schedule found that prunes {self.ratio} of the MACs within {TOLERANCE}; the nearest prunes "
            f"{self.ratio + nearest:.4f}. Ask for that"
        )

    def _raw(self, bits: np.ndarray) -> Schedule:
        sites = self.costs.graph.sites
        rows = np.concatenate([np.zeros(len(sites), dtype=bool), bits]).reshape(self.calls, len(sites))
        return Schedule(sites, rows)

    def _ratio(self, bits: np.ndarray) -> float:
        return self.costs.pruned_ratio(self._raw(bits))


class Space(Protocol):
    """What candidates stand for."""

    def schedule(self, candidate: np.ndarray) -> Schedule: ...


@dataclass
class Search:
    """A search under way: asks for the fitness of candidates, within a budget, and remembers the best."""

    space: Space
    fitness: Fitness
    budget: int
    best: tuple[float, np.ndarray] = field(default=(math.inf, np.empty(0)))
    idle: int = 0
    """Rounds since the last new schedule."""

    @property
    def left(self) -> int:
        """Evaluations that may still be asked for; 0 as well where no new schedules turn up any more."""
        return 0 if self.idle >= PATIENCE else self.budget - self.fitness.evaluations

    def evaluate(self, population: Sequence[np.ndarray]) -> list[float]:
        """The losses of one round's candidates."""
        before = self.fitness.evaluations
        losses = self.fitness([self.space.schedule(bits) for bits in population])
        self.idle = self.idle + 1 if self.fitness.evaluations == before else 0
        for loss, bits in zip(losses, population, strict=True):
            self.best = min(self.best, (loss, bits), key=lambda found: found[0])
        return losses


def begin(context: PlanContext, known: Mapping[str, Any]) -> tuple[Search, dict[str, Any]]:
    """The search that a run's `ratio` and `search` ask for, and its settings: `known` with those of `search` on top."""
    settings = settings_of(context, known)
    space = SearchSpace(context.costs, context.sampler.calls, context.param("ratio"))
    return Search(space, context.fitness, settings["evaluations"]), settings


def settings_of(context: PlanContext, known: Mapping[str, Any]) -> dict[str, Any]:
    """`known` settings of a search with those of a run's `search` on top."""
    given = context.params.get("search", {})
    for name in given:
        if name not in known:
            raise unknown("search setting", name, known)
    settings = {**known, **given}
    for name in ("evaluations", "population"):
        if settings[name] < 1:
            raise DipgoError(f"search.{name} is {settings[name]}; it must be at least 1")
    return settings


def end(context: PlanContext, search: Search) -> Plan:
    """The plan of the best schedule found."""
    return Plan(context.sampler, search.space.schedule(search.best[1]), context.costs)
