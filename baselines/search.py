"""What searches share: the preparation that they are, a budget, and bit strings that are repaired to a ratio."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

from baselines.params import read
from baselines.plan import Fitness, Plan, PlanContext
from baselines.preparation import Estimate, Preparation
from dipgo import TOLERANCE, CostModel, Schedule, UnreachableRatio
from dipgo.errors import DipgoError

ATTEMPTS = 20  # at a repair before a ratio counts as unreachable
SHAKE = 0.1  # share of the bits flipped at random before every further attempt
PATIENCE = 20  # rounds without a new schedule before a search ends below its budget


@dataclass(frozen=True)
class FitnessConfig:
    """What a search minimises: a consistency loss of Eq. 3 between a schedule's calibration pictures and the dense
    run's."""

    prompts: str = "train"
    """The prompt set whose captions the pictures have."""
    images: int = 8
    """How many pictures are compared."""
    loss: str = "ssim"
    """The loss, by its name in `dipgo.pruner.losses`."""
    seed: int = 0
    """Decides which captions are drawn, and the pictures' noise."""


@dataclass(frozen=True)
class Settings:
    """The settings that every search has."""

    evaluations: int = 1000
    """How many different schedules are evaluated at most."""
    population: int = 50
    """How many are proposed at a time."""
    seed: int = 0
    """Decides every draw."""

    def __post_init__(self) -> None:
        for name in ("evaluations", "population"):
            if getattr(self, name) < 1:
                raise DipgoError(f"search.{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True)
class ScheduleSearch(Preparation):
    """A search for the schedule of the least fitness. Its evaluations are kept, so that a search that was killed finds
    them again and goes on where it stopped."""

    method: str
    """The method's name, which is a part of the identity."""
    given: Mapping[str, Any]
    """The settings as the run gives them, without the defaults."""
    settings: Settings
    fitness: FitnessConfig
    run: Callable[[PlanContext, Fitness], Plan]
    """Searches, and returns the plan of the best schedule."""
    asked: Mapping[str, Any]
    """What the run asks of the schedule: its ratio or its calls."""

    folder, title, together = "searches", "search", True

    def identity(self) -> dict[str, Any]:
        search = {"method": self.method, "ratio": None, "search": dict(self.given)}
        return {"fitness": asdict(self.fitness), **search, **self.asked}

    def macs(self, run: Estimate) -> float:
        """Every schedule that may be evaluated is charged in full, although what schedules have in common runs once."""
        return self.fitness.images * run.macs * (1 + self.settings.evaluations * run.share)

    def make(self, context: PlanContext) -> Plan:
        with context.studio.fitness(self) as fitness:
            return self.run(context, fitness)

    def cells(self, kept: Mapping[str, Any]) -> dict[str, float]:
        count, seconds = len(kept["losses"]), kept["seconds"]
        return {"search_seconds": seconds, "evaluations": count, "evaluations_per_second": count / seconds}

    def trace(self, kept: Mapping[str, Any]) -> list[tuple[int, float]]:
        best: list[tuple[int, float]] = []
        for number, loss in enumerate(kept["losses"].values(), 1):
            if not best or loss < best[-1][1]:
                best.append((number, loss))
        return best


@dataclass(frozen=True)
class SearchSpace:
    """The schedules at a pruned ratio (in the paper's convention, within Algorithm 1's tolerance) as bit strings.

    A bit string is bool [(calls - 1) x sites], true where a block is reused. The first call has no bits, because it is
    always computed.
    """

    costs: CostModel
    calls: int
    """Denoiser calls of a picture."""
    ratio: float
    """The share of the MACs to prune."""

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise DipgoError(f"pruned ratio is {self.ratio}; it must lie strictly between 0 and 1")
        if self.calls < 2:
            raise DipgoError("a search needs at least 2 calls: the first one is always computed")

    @property
    def size(self) -> int:
        """The number of bits of a schedule."""
        return (self.calls - 1) * len(self.costs.graph.sites)

    def random(self, rng: np.random.Generator) -> np.ndarray:
        """Return random bits, repaired to the ratio."""
        return self.repair(rng.random(self.size) < 0.5, rng)

    def schedule(self, bits: np.ndarray) -> Schedule:
        """Return the schedule of a bit string. Everything that it does not compute is marked as reused, so that two bit
        strings that compute the same have one digest."""
        computed = self.costs.graph.execute(self._raw(bits)).computed
        computed[0] = True
        return Schedule(self.costs.graph.sites, ~computed)

    def repair(self, bits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the bits with random ones flipped until the pruned ratio is within the tolerance.

        Raises `UnreachableRatio` when no attempt gets there.
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

    def schedule(self, candidate: np.ndarray) -> Schedule:
        """Return the schedule of a candidate."""


@dataclass
class Search:
    """A search under way: it asks for the fitness of candidates, within a budget, and remembers the best."""

    space: Space
    fitness: Fitness
    budget: int
    """How many different schedules may be evaluated."""
    best: tuple[float, np.ndarray] = field(default=(math.inf, np.empty(0)))
    """The least loss and its candidate."""
    idle: int = 0
    """Rounds since the last new schedule."""

    @property
    def left(self) -> int:
        """Evaluations that may still be asked for; 0 as well where no new schedules turn up any more."""
        return 0 if self.idle >= PATIENCE else self.budget - self.fitness.evaluations

    def evaluate(self, population: Sequence[np.ndarray]) -> list[float]:
        """Return the losses of one round's candidates."""
        before = self.fitness.evaluations
        losses = self.fitness([self.space.schedule(bits) for bits in population])
        self.idle = self.idle + 1 if self.fitness.evaluations == before else 0
        for loss, bits in zip(losses, population, strict=True):
            self.best = min(self.best, (loss, bits), key=lambda candidate: candidate[0])
        return losses


@dataclass(frozen=True)
class RatioParams:
    """The parameters of a search for schedules at a ratio."""

    ratio: float
    """The share of the MACs to prune."""
    search: Mapping = field(default_factory=dict)
    """The search's settings, by the names in its `Settings`."""
    fitness: FitnessConfig = field(default_factory=FitnessConfig)
    """What the search minimises."""
    unit: str = "output"
    """Which of the family's sites are searched: a block's "output" (the paper's reading), its "delta", or every "layer"
    within the blocks."""


def ratio_search(
    method: str, kind: type[Settings], params: RatioParams, run: Callable[[Search, Any], None]
) -> ScheduleSearch:
    """Return the search of a method for schedules at a ratio.

    method: the method's name.
    kind: the dataclass of its settings.
    params: the run's parameters.
    run: evaluates candidates of a `Search` over a `SearchSpace` by these settings until none are left.
    """
    settings = read(kind, params.search, f"{method}.search")

    def searched(context: PlanContext, fitness: Fitness) -> Plan:
        context = context.at_unit(params.unit)
        space = SearchSpace(context.costs, context.sampler.calls, params.ratio)
        search = Search(space, fitness, settings.evaluations)
        run(search, settings)
        return Plan(context.sampler, space.schedule(search.best[1]), context.costs)

    asked = {"ratio": params.ratio} | ({} if params.unit == "output" else {"unit": params.unit})
    return ScheduleSearch(method, params.search, settings, params.fitness, searched, asked)
