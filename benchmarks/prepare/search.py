"""What searches minimise: the consistency loss of schedules on calibration pictures, counted and kept on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from tqdm import tqdm

from baselines import Plan
from baselines.search import FitnessConfig
from benchmarks.machine.shards import ALONE, Shards
from benchmarks.models import model as models
from benchmarks.models.generate import BATCHES, pictures_at_once, sample
from benchmarks.specs.files import write_text
from benchmarks.specs.prompts import check_learnable
from benchmarks.specs.run import Setting
from benchmarks.supply.profiles import source
from dipgo import DipgoError, Schedule, consistency, picture_seeds, rollout_together

NOISE_SEED = 2_000_003  # apart from the seeds of any scored picture and of any training


class Calibration:
    """The calibration pictures of a setting: their noise, conditioning and dense images."""

    def __init__(self, setting: Setting, config: FitnessConfig) -> None:
        check_learnable(config.prompts)
        self.model, self.guidance = models.load(setting), setting.guidance
        self.sampler = self.model.sampler(setting.scheduler, setting.steps)
        self.loss, self.together = consistency(config.loss), BATCHES * pictures_at_once(setting.resolution)
        captions = source(setting.profile).captions(config.prompts, setting.model)
        if not 1 <= config.images <= len(captions):
            raise DipgoError(
                f"fitness.images is {config.images}; it must lie between 1 and the {len(captions)} prompts of "
                f"{config.prompts!r}"
            )
        order = np.random.default_rng(config.seed).permutation(len(captions))
        self.captions = [captions[index] for index in order[: config.images]]
        self.seeds = picture_seeds(NOISE_SEED + config.seed, range(config.images))
        graph = self.model.costs.graph
        self.dense = Plan(self.sampler, Schedule.dense(graph.sites, self.sampler.calls), self.model.costs)

    @cached_property
    def images(self) -> torch.Tensor:
        """The dense run's images [n, 3, h, w]."""
        return self._sample(self.dense)

    @torch.no_grad()
    def losses(self, schedules: Sequence[Schedule]) -> list[float]:
        """Return the loss of each schedule. All are over the same sites; they run side by side, and what they have in
        common is computed once."""
        parts = self._parts(len(schedules))
        sizes = [len(self.seeds[part]) for part in parts]
        return np.average([self._losses(schedules, part) for part in parts], axis=0, weights=sizes).tolist()

    def _losses(self, schedules: Sequence[Schedule], part: slice) -> list[float]:
        """Return the loss of each schedule on a part of the pictures."""
        model = self.model
        graph = model.costs_at(schedules[0].sites).graph
        inputs = model.inputs_of(self.captions[part], self.seeds[part], self.guidance)
        by_schedule = rollout_together(model.diffusion(self.sampler, self.guidance), graph, schedules, inputs)
        return [self.loss(model.decode(latents), self.images[part]).item() for latents in by_schedule]

    def _sample(self, plan: Plan) -> torch.Tensor:
        parts = self._parts(1)
        return torch.cat([sample(self.model, plan, self.captions[p], self.seeds[p], self.guidance) for p in parts])

    def _parts(self, schedules: int) -> list[slice]:
        """Return the pictures in as many parts as memory asks for when so many schedules run side by side."""
        size = max(1, self.together // schedules)
        return [slice(start, start + size) for start in range(0, len(self.seeds), size)]


calibration = cache(Calibration)


@dataclass
class Journal:
    """What a search has evaluated."""

    losses: dict[str, float]
    """The loss of every schedule by its digest without timesteps, which a search has in common, in the order of
    evaluation."""
    seconds: float = 0.0
    """How long the evaluations took."""
    finished: bool = False
    """Whether the search is through."""


class Fitness:
    """The `baselines.plan.Fitness` of the harness. It evaluates what its journal lacks and writes it there in batches.

    A search that was killed asks for the same schedules again and finds their losses in the journal, so that it goes on
    where it stopped and nothing counts twice. A loss that is not finite raises `DipgoError`; all finished evaluations
    are kept then.
    """

    def __init__(
        self, calibration: Callable[[], Calibration], together: int, path: Path, title: str, shards: Shards = ALONE
    ) -> None:
        """Read the journal.

        calibration: makes the calibration pictures when they are first needed.
        together: how many schedules each process evaluates at a time.
        path: the journal's file.
        title: what the progress bar says.
        shards: the processes that search together, each of which evaluates a part of a batch.
        """
        self._calibration, self.path, self.title, self.shards = calibration, path, title, shards
        self.together = together
        self.journal = read_journal(path)
        self.asked: set[str] = set()
        self.since = perf_counter()

    @cached_property
    def calibration(self) -> Calibration:
        return self._calibration()

    @property
    def evaluations(self) -> int:
        return len(self.asked)

    def __call__(self, schedules: Sequence[Schedule]) -> list[float]:
        digests = [replace(schedule, timesteps=None).digest for schedule in schedules]
        missing = {d: s for d, s in zip(digests, schedules, strict=True) if d not in self.journal.losses}
        todo = list(missing.items())
        with tqdm(total=len(todo), desc=self.title, unit="schedule", disable=not todo) as progress:
            step = self.together * self.shards.count
            for start in range(0, len(todo), step):
                batch = todo[start : start + step]
                losses = self.shards.map(self.calibration.losses, [schedule for _, schedule in batch])
                self._keep([digest for digest, _ in batch], losses)
                progress.update(len(batch))
        self.asked.update(digests)
        return [self.journal.losses[digest] for digest in digests]

    def _keep(self, digests: Sequence[str], losses: Sequence[float]) -> None:
        finite = {d: loss for d, loss in zip(digests, losses, strict=True) if math.isfinite(loss)}
        self.journal.losses.update(finite)
        now = perf_counter()
        self.journal.seconds, self.since = self.journal.seconds + now - self.since, now
        self.write()
        for digest, loss in zip(digests, losses, strict=True):
            if digest not in finite:
                raise DipgoError(
                    f"the fitness of schedule {digest} is {loss}; the {len(self.journal.losses)} evaluations so far "
                    f"are kept in {self.path.name}. Look at the model's and the dense pictures' values"
                )

    def finish(self) -> None:
        """Mark the search as through."""
        if not self.journal.finished:
            self.journal.finished = True
            self.write()

    def write(self) -> None:
        if self.shards.index == 0:
            write_text(self.path, json.dumps(asdict(self.journal)) + "\n")


def read_journal(path: Path) -> Journal:
    """Return the journal in a file, or an empty one where there is none. Raises `DipgoError` for a broken file."""
    if not path.exists():
        return Journal({})
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        data.pop("plain", None)  # earlier searches also kept how long a plain loop takes
        return Journal(**data)
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, TypeError) as error:
        raise DipgoError(f"{path}: not a search's journal ({error}); delete it and search again") from error
