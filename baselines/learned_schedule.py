"""The paper's method: scores from a trained pruner, a schedule at the asked ratio by Algorithm 1."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from typing import Any

import numpy as np

from baselines.learned_forecast import ForecastLearning, Learning
from baselines.plan import Plan, PlanContext, Studio
from baselines.preparation import NOISE_SEED, Estimate, Lesson, Preparation, Step
from baselines.search import FitnessConfig
from dipgo import Batch, Diffusion, Forecast, TrainConfig, picture_seeds, select_schedule, train_pruner
from dipgo.state import State

CHUNK = 25  # batches whose dense pictures are made together, which costs a fraction of one by one
FIRST = ("steps", "lr", "weight_decay", "accumulate", "loss", "alpha", "tau", "gamma", "encoder", "width", "keep")
FIRST += ("checkpoint", "seed", "batch")  # always in the identity; what came later is only where it is not the default
FEW = {"steps": 1, "lr": 20.0, "keep": 0.51, "width": 8, "unit": "call"}  # settings that train in a moment
EXAMPLES = (
    {"ratio": 0.5, "train": FEW},
    {"ratio": 0.5, "train": FEW | {"order": 1}, "learn": {"rounds": 1, "shift": 0, "pictures": 2}},
)


@dataclass(frozen=True)
class Training(TrainConfig):
    """`dipgo.TrainConfig`, and what the training looks at."""

    batch: int = 1
    """How many pictures a batch holds."""
    unit: str = "output"
    """Which of the family's sites are gated: a block's "output" (the paper's reading), its "delta", or the whole
    "call"."""
    prompts: str = "train"
    """The prompt set whose captions the pictures have."""

    @property
    def config(self) -> TrainConfig:
        """The part that `train_pruner` takes."""
        return TrainConfig(**{each.name: getattr(self, each.name) for each in fields(TrainConfig)})


@dataclass(frozen=True)
class PrunerTraining(Lesson):
    """A pruner trained on dense runs. It gives scores, float [calls, sites]."""

    settings: Training

    folder, title = "pruners", "pruner training"

    def identity(self) -> dict[str, Any]:
        usual = asdict(Training())
        return {n: v for n, v in asdict(self.settings).items() if n in FIRST or v != usual[n]}

    def macs(self, run: Estimate) -> float:
        """Each picture takes the dense run, a forward pass of all blocks, a backward pass (as much again, because the
        weights are frozen) and, with checkpoints, another forward pass."""
        settings = self.settings
        return settings.steps * settings.accumulate * settings.batch * run.macs * (4 if settings.checkpoint else 3)

    @property
    def total(self) -> int:
        return self.settings.steps

    def steps(self, context: PlanContext, state: State | None) -> Iterator[Step]:
        settings, studio = self.settings, context.studio
        batches = batches_of(settings, studio, state.data["step"] if state else 0)
        diffusion = Diffusion(context.denoiser, context.sampler, studio.guidance)
        costs = context.at_unit(settings.unit).costs
        for step in train_pruner(settings.config, diffusion, costs, batches, studio.decode, state):
            shown = {"consistency": step.consistency, "sparsity": step.sparsity}
            yield Step(shown, step.state, lambda log, pruner=step.pruner: {"scores": _scores(pruner), "log": log})

    def read(self, result: Mapping[str, Any]) -> np.ndarray:
        return np.array(result["scores"], dtype=np.float32)


def _scores(pruner: Any) -> list[list[float]]:
    return pruner.scores().detach().cpu().numpy().tolist()


def batches_of(settings: Training, studio: Studio, made: int = 0) -> Iterator[Batch]:
    """Yield the batches of a training with the dense run's pictures, as many as it takes.

    made: how many steps are made already; their batches are left out.
    """
    captions, size = studio.captions(settings.prompts), settings.batch
    order = np.random.default_rng(settings.seed)
    left, skipped = settings.steps * settings.accumulate, made * settings.accumulate
    for number in itertools.count():
        drawn = [captions[i] for i in order.choice(len(captions), size * CHUNK, replace=False)][: size * left]
        if skipped < CHUNK:  # the pictures of a chunk are made in the same batches, whichever of them are used
            seeds = picture_seeds(NOISE_SEED + settings.seed, [number * size * CHUNK + i for i in range(len(drawn))])
            images = studio.images(drawn, seeds)
            for start in range(skipped * size, len(drawn), size):
                part = slice(start, start + size)
                yield Batch(studio.pictures(drawn[part], seeds[part]), images[part])
        left, skipped = left - CHUNK, max(0, skipped - CHUNK)


@dataclass(frozen=True)
class Params:
    """The parameters of `plan`."""

    ratio: float
    """The share of the MACs to prune."""
    train: Training = Training()
    """The pruner's training. With its `order` above 0 reused values are forecast instead of held, in the training and
    in the schedule."""
    learn: Learning | None = None
    """Where it is given, the forecast's coefficients are fitted to the schedule as `learned_forecast` does."""
    fitness: FitnessConfig = field(default_factory=FitnessConfig)
    """What the schedule is compared by with those of searches."""


def prepares(params: Params) -> tuple[Preparation, ...]:
    """A pruner is trained and, where the run asks for it, a forecast is learned from its schedule on."""
    pruner = PrunerTraining(params.train)
    if params.learn is None:
        return (pruner,)
    started_by = {"calls": None, "ratio": params.ratio}
    return pruner, ForecastLearning(params.learn, partial(_selected, params), started_by, {"pruner": pruner})


def plan(context: PlanContext, params: Params) -> Plan:
    """Prune what the trained scores rank lowest."""
    selected = _selected(params, context)
    _, *forecast = prepares(params)
    return replace(selected, schedule=forecast[0].make(context)) if forecast else selected


def _selected(params: Params, context: PlanContext) -> Plan:
    scores = PrunerTraining(params.train).make(context)
    costs, order = context.at_unit(params.train.unit).costs, params.train.order
    rule = Forecast(context.sampler.noise_ratios, order) if order else None
    return Plan(context.sampler, select_schedule(scores, params.ratio, costs, rule), costs)
