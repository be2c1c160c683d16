"""Learned forecasts, each learned once for its settings and kept as a schedule with the log of its rounds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from tqdm import tqdm

from baselines import Plan
from benchmarks.machine.provenance import memory_meter
from benchmarks.models import model as models
from benchmarks.models.generate import BATCHES, pictures_at_once
from benchmarks.prepare import training
from benchmarks.specs.files import address, write_text
from benchmarks.specs.run import RunSpec
from benchmarks.supply.profiles import source
from dipgo import Diffusion, Inputs, LearnConfig, Schedule, initial_noise, learn_forecast, picture_seeds
from dipgo.errors import DipgoError, unknown

PICTURES, PROMPTS, SEED = 16, "train", 0
OWN = {"pictures", "prompts", "seed"}


@dataclass(frozen=True)
class Learning:
    """A finished learning: the schedule, the loss after every round, its seconds, and the most resident memory that
    its process had meanwhile, in bytes."""

    schedule: Schedule
    losses: list[float]
    seconds: float
    peak_memory: int


def path_of(spec: RunSpec, folder: Path) -> Path:
    """Where in `folder` the forecast of a run is kept, by `params["learn"]` and by what says where it starts: the
    number of calls, or the pruner's training and ratio.

    The former are `LearnConfig`'s fields and `pictures`, how many to learn from (16); `prompts`, whose ("train");
    `seed`, which of them and with which noise (0). Raises `DipgoError` for another name.
    """
    settings = spec.params.get("learn", {})
    own = {"pictures": PICTURES, "prompts": PROMPTS, "seed": SEED}
    own |= {name: value for name, value in settings.items() if name in OWN}
    identity = {**spec.setting._asdict(), "calls": spec.params.get("calls"), **own, **asdict(_config(settings))}
    if "train" in spec.params:
        pruner = training.path_of(spec, spec.params["train"], folder).stem
        identity |= {"pruner": pruner, "ratio": spec.params.get("ratio")}
    return address(identity, folder)


def _config(settings: Mapping[str, Any], **usual: int) -> LearnConfig:
    known = {field.name for field in fields(LearnConfig)}
    for name in settings:
        if name not in known | OWN:
            raise unknown("setting of learning", name, known | OWN)
    return LearnConfig(**usual | {name: value for name, value in settings.items() if name in known})


def learn_once(spec: RunSpec, plan: Plan, settings: Mapping[str, Any], folder: Path) -> Learning:
    """What is learned for a run from a plan's schedule on (see `path_of`), from `folder` or learned now."""
    path = path_of(spec, folder)
    if path.exists():
        return read(path)
    model = models.load(spec)
    config = _config(settings, together=BATCHES * pictures_at_once(spec.resolution))
    graph, scale = plan.costs.graph, model.branch_guidance(spec.guidance)
    start, losses = perf_counter(), []
    with memory_meter() as peak:
        pictures = _pictures(model, spec, settings)
        steps = learn_forecast(config, Diffusion(model.denoiser, plan.sampler, scale), graph, plan.schedule, pictures)
        with tqdm(steps, total=config.rounds + 1, desc=f"forecast, {spec.id}", unit="round") as progress:
            for state in progress:
                losses.append(state.loss)
                progress.set_postfix(loss=f"{state.loss:.4f}")
        learning = Learning(state.schedule, losses, perf_counter() - start, peak())
    data = {"model": spec.model, "settings": dict(settings), **vars(learning), "schedule": state.schedule.to_dict()}
    write_text(path, json.dumps(data) + "\n")
    return learning


def read(path: Path) -> Learning:
    """What was learned and kept in a file."""
    data = json.loads(path.read_text())
    schedule = Schedule.from_dict(data["schedule"])
    return Learning(schedule, data["losses"], data["seconds"], data["peak_memory"])


def _pictures(model: models.Model, spec: RunSpec, settings: Mapping[str, Any]) -> Inputs:
    """Captions and noises that no scored picture has."""
    captions = source(spec.profile).captions(settings.get("prompts", PROMPTS), spec.model)
    count, seed = settings.get("pictures", PICTURES), settings.get("seed", SEED)
    if not 1 <= count <= len(captions):
        raise DipgoError(f"learn.pictures is {count}; it must lie between 1 and the {len(captions)} prompts")
    drawn = [captions[i] for i in np.random.default_rng(seed).permutation(len(captions))[:count]]
    seeds = picture_seeds(training.NOISE_SEED + seed, range(count))
    noise = initial_noise(seeds, model.latent_shape).to(model.device)
    return Inputs(noise, model.condition(drawn, spec.guidance), seeds)
