"""A studio of tiny pictures, kept in memory: methods learn, train and search here in a moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from baselines.plan import Plan, PlanContext, Studio
from baselines.preparation import Lesson
from baselines.search import ScheduleSearch
from dipgo import Inputs, Schedule, initial_noise
from dipgo.errors import unknown


class Toy:
    """A fitness by arithmetic that counts like the real one."""

    def __init__(self, loss: Callable[[Schedule], float] = lambda schedule: float(schedule.reuse.argmin())) -> None:
        self.loss, self.seen, self.order = loss, {}, []

    @property
    def evaluations(self) -> int:
        return len(self.seen)

    def __call__(self, schedules: Sequence[Schedule]) -> list[float]:
        for schedule in schedules:
            if schedule.digest not in self.seen:
                self.seen[schedule.digest] = self.loss(schedule)
                self.order.append(schedule.digest)
        return [self.seen[schedule.digest] for schedule in schedules]


class TinyStudio(Studio):
    """Pictures of any tiny denoiser with latents of 4 x 8 x 8, and lessons that really run.

    results: results of lessons, by folder, that are taken as learned.
    plans: plans of other runs by id.
    conditioning: gives a denoiser's conditioning for so many rows.
    """

    guidance, at_once = 2.0, 4

    def __init__(
        self,
        results: Mapping[str, Any] | None = None,
        plans: Mapping[str, Plan] | None = None,
        fitness: Any = None,
        conditioning: Callable[[int], Mapping[str, Any]] | None = None,
    ) -> None:
        self.results, self.plans = dict(results or {}), plans or {}
        self.evaluated, self.conditioning = fitness or Toy(), conditioning
        self.lessons: list[Lesson] = []

    def plan_of(self, run: str) -> Plan:
        if run not in self.plans:
            raise unknown("run", run, self.plans)
        return self.plans[run]

    def taught(self, lesson: Lesson, context: PlanContext) -> Mapping[str, Any]:
        self.lessons.append(lesson)
        if lesson.folder not in self.results:
            steps = list(lesson.steps(context, None))
            self.results[lesson.folder] = steps[-1].result([step.shown for step in steps])
        return self.results[lesson.folder]

    @contextmanager
    def fitness(self, search: ScheduleSearch) -> Iterator[Any]:
        yield self.evaluated

    def captions(self, prompts: str) -> list[str]:
        return [f"{prompts} {index}" for index in range(60)]

    def pictures(self, captions: Sequence[str], seeds: Sequence[int]) -> Inputs:
        return Inputs(initial_noise(seeds, (4, 8, 8)), self.conditioning(2 * len(captions)), seeds)

    def images(self, captions: Sequence[str], seeds: Sequence[int]) -> torch.Tensor:
        return self.decode(initial_noise(seeds, (4, 8, 8)))

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(latents[:, :3].sigmoid(), scale_factor=4)
