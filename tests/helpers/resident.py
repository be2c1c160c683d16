"""Measures the most memory that one real training step of the pruner takes, in a process of its own.

`python -m tests.helpers.resident NAME CALLS CHECKPOINT CHANGES` prints the bytes at the peak above what the process
held before it had a model. CHECKPOINT is 0 or 1; CHANGES is the JSON of the changes that make the pipeline small. Where
there is a GPU, its memory is measured.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.models.model import prepared
from benchmarks.supply.random_weights import CLASSES, pipeline
from dipgo import Batch, CostModel, Diffusion, Inputs, Sampler, TrainConfig, initial_noise, trace_graph, train_pruner
from dipgo.costs import Costs
from tests.helpers.small import SMALL


def reset() -> int:
    """Forget the peak so far; what is held now, in bytes."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew; a sampling thread misses peaks on a busy machine
    return _status("VmRSS")


def peak() -> int:
    """The most that was held since `reset`, in bytes."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def train_once(name: str, calls: int, checkpoint: bool, changes: Mapping[str, Any]) -> int:
    before = reset()
    dtype = torch.float16 if torch.cuda.is_available() else torch.float32
    model = prepared(name, pipeline(name, dtype, **changes))
    noise, conditioning = initial_noise([0], model.latent_shape).to(model.device), model.condition(CLASSES[:1], 7.5)
    pixels = model.latent_shape[1] * 2 ** (len(model.pipeline.vae.config.block_out_channels) - 1)
    batch = Batch(Inputs(noise, conditioning, [0]), torch.zeros(1, 3, pixels, pixels, device=model.device))
    config, sampler = TrainConfig(steps=1, checkpoint=checkpoint), Sampler("ddim", model.scheduler_config, calls)
    sites = model.family.sites(model.denoiser)
    uncounted = Costs(np.ones(len(sites)), 0.0)  # only the graph matters here
    costs = CostModel(trace_graph(model.denoiser, sites, model.family.probe(model.denoiser)), uncounted, uncounted)
    list(train_pruner(config, Diffusion(model.denoiser, sampler, 7.5), costs, iter([batch]), model.decode))
    return peak() - before


if __name__ == "__main__":
    torch.set_num_threads(1)
    name, calls, checkpoint, changes = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "1", json.loads(sys.argv[4])
    train_once(name, 2, True, SMALL[name])  # what torch sets up once and for all
    sys.stdout.write(f"{train_once(name, calls, checkpoint, changes)}\n")
