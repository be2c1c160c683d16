"""What a method makes once, before its first picture: a training, a learning, a search.

A preparation is one object that a method names. It says what decides its result, what it costs and how it is made;
the harness keeps the result, lets runs with equal settings share it, and goes on with it after a kill.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from baselines.plan import PlanContext, Studio
from dipgo.errors import DipgoError
from dipgo.sampling import picture_seeds
from dipgo.state import State

NOISE_SEED = 1_000_003  # apart from the seeds of any scored picture


@dataclass(frozen=True)
class Estimate:
    """What is known of a run before anything is made."""

    macs: float
    """MACs of one dense picture: all operations, calls and guidance branches."""
    share: float
    """The share of them that the asked schedule spends."""
    calls: int
    """Denoiser calls of a dense picture."""
    branches: int
    """Guidance branches of a call."""


@dataclass(frozen=True)
class Pictures:
    """Which dense runs to learn from."""

    pictures: int = 16
    """How many pictures to learn from."""
    prompts: str = "train"
    """The prompt set whose captions they have."""
    seed: int = 0
    """Decides which captions of the set are drawn, and the pictures' noise."""

    def drawn(self, studio: Studio) -> tuple[list[str], list[int]]:
        """Return the captions and the seeds of the pictures. Equal settings give equal pictures to every method."""
        captions = studio.captions(self.prompts)
        if not 1 <= self.pictures <= len(captions):
            raise DipgoError(
                f"learn.pictures is {self.pictures}; it must lie between 1 and the {len(captions)} prompts"
            )
        order = np.random.default_rng(self.seed).permutation(len(captions))
        seeds = picture_seeds(NOISE_SEED + self.seed, range(self.pictures))
        return [captions[index] for index in order[: self.pictures]], seeds


class Preparation(ABC):
    """Something that a method makes once. Runs of one setting whose preparations have equal identities share it."""

    folder: ClassVar[str]
    """The folder of the workspace that holds the results, such as "pruners"."""
    title: ClassVar[str]
    """What it is called in messages and beside progress bars."""
    together: ClassVar[bool] = False
    """Whether all launched processes make it together. Otherwise one of them makes it alone."""
    needs: Mapping[str, Preparation] = MappingProxyType({})
    """The preparations that must be there first, by the names under which they enter the identity."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return what decides the result besides the run's setting and `needs`: plain JSON values."""

    @abstractmethod
    def macs(self, run: Estimate) -> float:
        """Return an estimate of the MACs that making it takes."""

    @abstractmethod
    def make(self, context: PlanContext) -> Any:
        """Return the result for a run; `context.studio` keeps it, or finds it where it was made before."""

    @abstractmethod
    def cells(self, kept: Mapping[str, Any]) -> dict[str, float]:
        """Return what it cost, as cells of a record, by what the harness has kept of it."""

    def account(self, kept: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what a record tells of the result in plain JSON values, such as what was chosen among what."""
        return {}

    def trace(self, kept: Mapping[str, Any]) -> list[tuple[int, float]] | None:
        """Return how the best loss fell over the evaluations of a search; None where nothing was searched."""
        return None


@dataclass(frozen=True)
class Step:
    """Where a lesson stands after one of its steps."""

    shown: Mapping[str, float]
    """What the progress bar shows and the lesson's log keeps."""
    state: Callable[[], State]
    """Returns what it takes to go on from here; it is called before the next step."""
    result: Callable[[Sequence[Mapping[str, float]]], dict[str, Any]]
    """Returns the result if this is the last step: plain JSON values, made of the log of all steps and what the lesson
    has learned."""


class Lesson(Preparation):
    """A preparation that is learned step by step from dense runs: a training of gates, a fit of coefficients.

    A subclass is a dataclass that holds its settings. It lists its steps and turns the kept result into what the
    method uses.
    """

    @property
    @abstractmethod
    def total(self) -> int:
        """The number of steps at most."""

    @abstractmethod
    def steps(self, context: PlanContext, state: State | None) -> Iterator[Step]:
        """Learn for a run and yield every step; `context.studio` gives the pictures to learn from.

        state: the state after an earlier step, which is yielded again. The steps after it are the same, bit for bit, as
            without the stop. None begins anew.
        """

    def read(self, result: Mapping[str, Any]) -> Any:
        """Return what the method uses: by default the last step's result as it is."""
        return result

    def make(self, context: PlanContext) -> Any:
        return self.read(context.studio.taught(self, context))

    def cells(self, kept: Mapping[str, Any]) -> dict[str, float]:
        return {"training_seconds": kept["seconds"], "training_peak_memory": kept["peak_memory"]}
