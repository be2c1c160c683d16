"""What a run's method sees: its model, pictures to learn from, and results that are kept in the workspace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from baselines.plan import Plan, PlanContext, Studio
from baselines.preparation import Lesson
from baselines.search import FitnessConfig, ScheduleSearch
from benchmarks.machine.shards import ALONE, Shards
from benchmarks.models import model as models
from benchmarks.models.generate import BATCHES, pictures_at_once, sample
from benchmarks.prepare import kept
from benchmarks.prepare.search import Fitness, calibration
from benchmarks.specs.files import address
from benchmarks.specs.prompts import check_learnable
from benchmarks.specs.run import RunSpec
from benchmarks.supply.profiles import source
from dipgo import Inputs
from dipgo.errors import DipgoError

SEARCHES = ScheduleSearch.folder


def no_other_run(name: str) -> Plan:
    """Refuse a method that starts from another run where there is none."""
    raise DipgoError(f"this method starts from no other run; drop {name!r} from its params")


class RunStudio(Studio):
    """The studio of one run. Pictures that methods learn from are none of those that are scored."""

    def __init__(
        self,
        spec: RunSpec,
        workspace: Path,
        plan_of: Callable[[str], Plan] = no_other_run,
        group: Shards = ALONE,
    ) -> None:
        """Load the run's model.

        spec: the run.
        workspace: the folder in which results are kept.
        plan_of: gives the plan of another run by its id.
        group: the processes that search together.
        """
        self.spec, self.workspace, self.plan_of, self.group = spec, workspace, plan_of, group
        self.model = models.load(spec)
        self.guidance, self.at_once = self.model.branch_guidance(spec.guidance), pictures_at_once(spec.resolution)

    def context(self) -> PlanContext:
        """Return what the run's method plans for."""
        spec, model = self.spec, self.model
        sampler = model.sampler(spec.scheduler, spec.steps)
        return PlanContext(model.denoiser, model.costs, sampler, spec.params, self)

    def taught(self, lesson: Lesson, context: PlanContext) -> Mapping[str, Any]:
        return kept.taught(lesson, context, self.spec, kept.path_of(self.spec, lesson, self.workspace))

    @contextmanager
    def fitness(self, search: ScheduleSearch) -> Iterator[Fitness]:
        path = kept.path_of(self.spec, search, self.workspace)
        with kept.held(path) if self.group.index == 0 else nullcontext():
            self.group.wait()  # all have read the same journal before it grows
            evaluated = self._fitness(search.fitness, path, self.group)
            self.group.wait()
            yield evaluated
            evaluated.finish()

    def loss(self, plan: Plan, config: FitnessConfig) -> float:
        """Return the loss of the run's schedule on the calibration pictures, kept or evaluated now.

        A search has evaluated it already. Runs of one setting that do not search keep their losses in one file.
        """
        kept_in = kept.preparations(self.spec, self.workspace)
        shared = address({**self.spec.setting._asdict(), "fitness": asdict(config)}, self.workspace / SEARCHES)
        path = next((path for path, prepared in kept_in.items() if isinstance(prepared, ScheduleSearch)), shared)
        with kept.held(path):
            return self._fitness(config, path, ALONE)([plan.schedule])[0]

    def captions(self, prompts: str) -> list[str]:
        check_learnable(prompts)
        return source(self.spec.profile).captions(prompts, self.spec.model)

    def pictures(self, captions: Sequence[str], seeds: Sequence[int]) -> Inputs:
        return self.model.inputs_of(captions, seeds, self.spec.guidance)

    def images(self, captions: Sequence[str], seeds: Sequence[int]) -> torch.Tensor:
        dense, guidance = self.context().dense(), self.spec.guidance
        pieces = [slice(start, start + self.at_once) for start in range(0, len(captions), self.at_once)]
        return torch.cat([sample(self.model, dense, captions[p], seeds[p], guidance) for p in pieces])

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.model.decode(latents)

    def _fitness(self, config: FitnessConfig, path: Path, group: Shards) -> Fitness:
        together = max(1, BATCHES * self.at_once // max(config.images, 1))
        title = f"{ScheduleSearch.title}, {self.spec.id}"
        return Fitness(lambda: calibration(self.spec.setting, config), together, path, title, group)
