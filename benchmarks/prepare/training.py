"""Pruners, each trained once for its settings and kept as scores with the training's log."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from baselines import Plan
from benchmarks.machine.provenance import memory_meter
from benchmarks.models import model as models
from benchmarks.models.generate import pictures_at_once, sample
from benchmarks.models.model import Model
from benchmarks.specs.files import address, write_text
from benchmarks.specs.run import RunSpec
from benchmarks.supply.profiles import source
from dipgo import Batch, Diffusion, Inputs, Sampler, Schedule, TrainConfig, initial_noise, picture_seeds, train_pruner
from dipgo.errors import unknown

CHUNK = 25  # batches whose dense pictures are made together, which costs a fraction of one by one
NOISE_SEED = 1_000_003  # apart from the seeds of any scored picture
BATCH, UNIT, PROMPTS = 1, "output", "train"
# Settings that came later than the first trainings, whose addresses shall hold.
LATER = {"unit": UNIT, "prompts": PROMPTS, "order": TrainConfig.order, "coefficient_lr": TrainConfig.coefficient_lr}


@dataclass(frozen=True)
class Training:
    """A finished training: scores [calls, sites], Eq. 3's terms before every update, its seconds, and the most
    resident memory that its process had meanwhile, in bytes."""

    scores: np.ndarray
    log: list[dict[str, float]]
    seconds: float
    peak_memory: int


def path_of(spec: RunSpec, settings: Mapping[str, Any], folder: Path) -> Path:
    """Where in `folder` the training of these settings is kept.

    `settings` are `TrainConfig`'s fields and `batch`, the pictures a batch (1); `unit`, which of the family's sites
    are gated ("output"); `prompts`, the prompt set to train on ("train"). Raises `DipgoError` for another name.
    """
    config = _config(settings)
    identity = {"batch": BATCH} | LATER | dict(settings) | spec.setting._asdict() | asdict(config)
    for name, usual in LATER.items():
        if identity[name] == usual:
            del identity[name]
    return address(identity, folder)


def _config(settings: Mapping[str, Any]) -> TrainConfig:
    own = {field.name for field in fields(TrainConfig)}
    known = own | {"batch", "unit", "prompts"}
    for name in settings:
        if name not in known:
            raise unknown("training setting", name, known)
    return TrainConfig(**{name: value for name, value in settings.items() if name in own})


def train_once(spec: RunSpec, settings: Mapping[str, Any], folder: Path) -> Training:
    """The training for a run's model, sampler and these settings (see `path_of`), from `folder` or run now."""
    path = path_of(spec, settings, folder)
    if path.exists():
        data = json.loads(path.read_text())
        scores = np.array(data["scores"], dtype=np.float32)
        return Training(scores, data["log"], data["seconds"], data["peak_memory"])
    model, config = models.load(spec), _config(settings)
    sampler = Sampler(spec.scheduler, model.scheduler_config, spec.steps)
    costs = model.costs_of(settings.get("unit", UNIT))
    batches, scale = _batches(model, sampler, spec, settings), model.branch_guidance(spec.guidance)
    start, history = perf_counter(), []
    with memory_meter() as peak:
        steps = train_pruner(config, Diffusion(model.denoiser, sampler, scale), costs, batches, model.decode)
        with tqdm(steps, total=config.steps, desc=f"pruner training, {spec.id}", unit="step") as progress:
            for state in progress:
                history.append({"consistency": state.consistency, "sparsity": state.sparsity})
                progress.set_postfix(consistency=f"{state.consistency:.4f}", sparsity=f"{state.sparsity:.3f}")
        scores = state.pruner.scores().detach().cpu().numpy()
        training = Training(scores, history, perf_counter() - start, peak())
    data = {"model": spec.model, "settings": dict(settings), **asdict(training), "scores": scores.tolist()}
    write_text(path, json.dumps(data) + "\n")
    return training


def _batches(model: Model, sampler: Sampler, spec: RunSpec, settings: Mapping[str, Any]) -> Iterator[Batch]:
    """As many batches as a training takes, with the dense run's pictures."""
    config, size = _config(settings), settings.get("batch", BATCH)
    captions = source(spec.profile).captions(settings.get("prompts", PROMPTS), spec.model)
    order = np.random.default_rng(config.seed)
    graph = model.costs.graph
    dense = Plan(sampler, Schedule.dense(graph.sites, sampler.calls), model.costs)
    left = config.steps * config.accumulate
    for number in itertools.count():
        drawn = [captions[i] for i in order.choice(len(captions), size * CHUNK, replace=False)][: size * left]
        seeds = picture_seeds(NOISE_SEED + config.seed, [number * size * CHUNK + i for i in range(len(drawn))])
        together = pictures_at_once(spec.resolution)
        pieces = [slice(start, start + together) for start in range(0, len(drawn), together)]
        images = torch.cat([sample(model, dense, drawn[p], seeds[p], spec.guidance) for p in pieces])
        noise = initial_noise(seeds, model.latent_shape).to(model.device)
        for start in range(0, len(drawn), size):
            part = slice(start, start + size)
            yield Batch(Inputs(noise[part], model.condition(drawn[part], spec.guidance), seeds[part]), images[part])
        left -= CHUNK
