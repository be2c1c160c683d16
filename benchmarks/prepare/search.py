"""What searches minimise: the consistency loss of schedules on calibration pictures, counted and kept on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from baselines import Plan
from benchmarks.machine.shards import ALONE, Shards
from benchmarks.models import model as models
from benchmarks.models.generate import BATCHES, pictures_at_once, sample
from benchmarks.specs.files import address, construct, write_text
from benchmarks.specs.run import RunSpec, Setting
from benchmarks.supply.profiles import source
from dipgo import DipgoError, Sampler, Schedule, picture_seeds, rollout_together
from dipgo.pruner.losses import consistency

NOISE_SEED = 2_000_003  # apart from the seeds of any scored picture and of any training


@dataclass(frozen=True)
class FitnessConfig:
    """`images` pictures, whose captions `seed` draws from a prompt set and whose noises it decides, compared with the
    dense run's by a consistency loss of Eq. 3."""

    prompts: str = "train"
    images: int = 8
    loss: str = "ssim"
    seed: int = 0


class Calibration:
    """The calibration pictures of a setting: their noise, conditioning and dense images."""

    def __init__(self, setting: Setting, config: FitnessConfig) -> None:
        self.model, self.guidance = models.load(setting), setting.guidance
        self.sampler = Sampler(setting.scheduler, self.model.scheduler_config, setting.steps)
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
        """The dense run's pictures [n, 3, h, w]."""
        return self._sample(self.dense)

    @torch.no_grad()
    def losses(self, schedules: Sequence[Schedule]) -> list[float]:
        """The loss of each schedule, all over the same sites; they run side by side and share what they can."""
        parts = self._parts(len(schedules))
        sizes = [len(self.seeds[part]) for part in parts]
        return np.average([self._losses(schedules, part) for part in parts], axis=0, weights=sizes).tolist()

    def _losses(self, schedules: Sequence[Schedule], part: slice) -> list[float]:
        """`losses` on some of the pictures."""
        model = self.model
        graph = model.family.costs(model.denoiser, schedules[0].sites).graph
        inputs = model.inputs_of(self.captions[part], self.seeds[part], self.guidance)
        by_schedule = rollout_together(model.diffusion(self.sampler, self.guidance), graph, schedules, inputs)
        return [self.loss(model.decode(latents), self.images[part]).item() for latents in by_schedule]

    def plain(self, schedule: Schedule) -> tuple[float, float]:
        """Seconds of one evaluation as a plain loop has it, which makes the dense pictures anew for each schedule,
        and of the part of it that a loop which keeps them would have."""
        start = perf_counter()
        dense = self._sample(self.dense)
        between = perf_counter()
        costs = self.model.family.costs(self.model.denoiser, schedule.sites)
        self.loss(self._sample(Plan(self.sampler, schedule, costs)), dense).item()
        end = perf_counter()
        return end - start, end - between

    def _sample(self, plan: Plan) -> torch.Tensor:
        parts = self._parts(1)
        return torch.cat([sample(self.model, plan, self.captions[p], self.seeds[p], self.guidance) for p in parts])

    def _parts(self, schedules: int) -> list[slice]:
        """The pictures in as many parts as memory asks for when so many schedules run side by side."""
        size = max(1, self.together // schedules)
        return [slice(start, start + size) for start in range(0, len(self.seeds), size)]


calibration = cache(Calibration)


@dataclass
class Journal:
    """What a search has evaluated: the loss of every schedule by digest, in order, and the seconds that it took.

    `plain`: what `Calibration.plain` measured. `finished`: the search is through.
    """

    losses: dict[str, float]
    seconds: float = 0.0
    plain: tuple[float, float] | None = None
    finished: bool = False

    @property
    def trace(self) -> list[tuple[int, float]]:
        """Best so far: (evaluation, loss) of every improvement."""
        found: list[tuple[int, float]] = []
        for number, loss in enumerate(self.losses.values(), 1):
            if not found or loss < found[-1][1]:
                found.append((number, loss))
        return found


class Fitness:
    """`baselines.context.Fitness`: evaluates what the journal in `path` lacks and writes it there, batch by batch.

    A search that was killed asks for the same schedules again and finds their losses there, so that it goes on
    where it stopped and nothing counts twice. A batch holds `together` schedules for each process; those that search
    together (`shards`) evaluate a part of it each. Raises `DipgoError` for a loss that is not finite, with all finished
    evaluations kept.
    """

    def __init__(
        self, calibration: Callable[[], Calibration], together: int, path: Path, title: str, shards: Shards = ALONE
    ) -> None:
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
        digests = [schedule.digest for schedule in schedules]
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

    def finish(self, plain: Sequence[Schedule]) -> None:
        """Measure what an evaluation of the schedules `plain` costs a plain loop, and close the journal."""
        seconds = [self.calibration.plain(schedule) for schedule in plain]
        self.journal.plain = tuple(sum(column) / len(seconds) for column in zip(*seconds, strict=True))
        self.journal.finished = True
        self.write()

    def write(self) -> None:
        if self.shards.index == 0:
            write_text(self.path, json.dumps(asdict(self.journal)) + "\n")


def fitness_of(spec: RunSpec, folder: Path, shards: Shards = ALONE) -> Fitness:
    """The fitness that a run's `params["fitness"]` asks for; its journal lies in `folder`.

    Every search has a journal of its own; all runs that do not search share one.
    """
    config = _config(spec)
    together = max(1, BATCHES * pictures_at_once(spec.resolution) // max(config.images, 1))
    path, title = path_of(spec, folder), f"search, {spec.id}"
    return Fitness(lambda: calibration(spec.setting, config), together, path, title, shards)


def path_of(spec: RunSpec, folder: Path) -> Path:
    """The journal of a run's fitness evaluations."""
    identity: dict[str, Any] = {**spec.setting._asdict(), "fitness": asdict(_config(spec))}
    if "search" in spec.params:
        identity |= {"method": spec.method, "ratio": spec.params.get("ratio"), "search": dict(spec.params["search"])}
        identity |= {name: spec.params[name] for name in ("calls", "order") if name in spec.params}
    return address(identity, folder)


def _config(spec: RunSpec) -> FitnessConfig:
    return construct(FitnessConfig, spec.params.get("fitness", {}), f"run {spec.id!r}: fitness")


def read_journal(path: Path) -> Journal:
    """The journal in a file; an empty one where there is none. Raises `DipgoError` for a broken file."""
    if not path.exists():
        return Journal({})
    try:
        return Journal(**json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        raise DipgoError(f"{path}: not a search's journal ({error}); delete it and search again") from error


def search_cells(journal: Journal, loss: float) -> dict[str, dict[str, Any]]:
    """The chosen schedule's loss on the calibration pictures and, of a search, what it cost: seconds, evaluations,
    and how many times the evaluations a second of a plain loop it made, which evaluates one schedule after the other
    and makes the dense pictures anew each time, or keeps them."""
    cells = {"fitness": loss}
    if journal.plain is not None:
        count, (plain, kept) = len(journal.losses), journal.plain
        cells |= {
            "search_seconds": journal.seconds,
            "evaluations": count,
            "evaluations_per_second": count / journal.seconds,
            "speedup_over_plain_loop": plain * count / journal.seconds,
            "speedup_over_loop_keeping_dense": kept * count / journal.seconds,
        }
    return {name: {"value": value} for name, value in cells.items()}
