"""Pruners, each trained once for its settings and kept as scores with the training's log."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from tqdm import tqdm

from baselines import Plan
from benchmarks.generate import sample
from benchmarks.models import Model
from benchmarks.record import write_text
from benchmarks.spec import RunSpec, unknown
from benchmarks.zoo import zoo
from dipgo import Batch, Sampler, Schedule, TrainConfig, initial_noise, train_pruner

log = logging.getLogger(__name__)
CHUNK = 25
NOISE_SEED = 1_000_003  # apart from the seeds of any scored picture


@dataclass(frozen=True)
class Training:
    """A finished training: scores [calls, sites], Eq. 3's terms before every update, and its seconds."""

    scores: np.ndarray
    log: list[dict[str, float]]
    seconds: float


def train_once(model: Model, sampler: Sampler, spec: RunSpec, settings: Mapping[str, Any], folder: Path) -> Training:
    """The training for these settings from `folder`, or run now and kept there.

    `settings` are `TrainConfig`'s fields and `batch`, the pictures a batch. Prompts come from the zoo's
    training captions, which no prompt set scores.
    """
    known = {field.name for field in fields(TrainConfig)} | {"batch"}
    for name in settings:
        if name not in known:
            raise unknown("training setting", name, known)
    batch = settings.get("batch", 1)
    config = TrainConfig(**{name: value for name, value in settings.items() if name != "batch"})
    identity = {
        "model": spec.model,
        "revision": spec.revision,
        "scheduler": sampler.name,
        "steps": sampler.steps,
        "guidance": spec.guidance,
        "batch": batch,
        **asdict(config),
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / f"{digest}.json"
    if path.exists():
        data = json.loads(path.read_text())
        return Training(np.array(data["scores"], dtype=np.float32), data["log"], data["seconds"])
    start, history = perf_counter(), []
    steps = train_pruner(
        config,
        model.denoiser,
        sampler,
        model.costs,
        _batches(model, sampler, batch, spec, config.seed),
        model.decode,
        spec.guidance,
    )
    with tqdm(steps, total=config.steps, desc="pruner training", unit="step") as progress:
        for state in progress:
            history.append({"consistency": state.consistency, "sparsity": state.sparsity})
            progress.set_postfix(consistency=f"{state.consistency:.4f}", sparsity=f"{state.sparsity:.3f}")
    scores = state.pruner.scores().detach().cpu().numpy()
    training = Training(scores, history, perf_counter() - start)
    data = {"identity": identity, "seconds": training.seconds, "log": history, "scores": scores.tolist()}
    write_text(path, json.dumps(data) + "\n")
    return training


def _batches(model: Model, sampler: Sampler, size: int, spec: RunSpec, seed: int) -> Iterator[Batch]:
    """Batches of `size` pictures. Dense references are made `CHUNK` batches at a time, which costs a fraction."""
    captions = [prompt.caption for prompt in zoo.prompts("train")]
    order = np.random.default_rng(seed)
    dense = Plan(sampler, Schedule.dense(model.costs.graph.sites, sampler.calls), model.costs)
    for number in itertools.count():
        drawn = [captions[i] for i in order.choice(len(captions), size * CHUNK, replace=False)]
        indices = [number * size * CHUNK + i for i in range(size * CHUNK)]
        noise = initial_noise(NOISE_SEED + seed, indices, model.latent_shape).to(model.device)
        images = sample(model, dense, drawn, noise, spec.guidance)
        for start in range(0, size * CHUNK, size):
            part = slice(start, start + size)
            yield Batch(noise[part], model.condition(drawn[part], spec.guidance), images[part])
