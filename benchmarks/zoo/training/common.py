"""What the training scripts share: arguments, averages of weights, deadlines, the picture features."""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

ZOO = Path(__file__).resolve().parents[1]


def arguments(doc: str | None, minutes: float | None = None, flags: tuple[str, ...] = ()) -> argparse.Namespace:
    """``--work`` (created), ``--minutes`` for the scripts that train, and on-off ``flags``."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="scratch folder for data and checkpoints")
    if minutes is not None:
        parser.add_argument("--minutes", type=float, default=minutes, help="wall-clock time of this training")
    for flag in flags:
        parser.add_argument(f"--{flag}", action="store_true")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    level = logging.INFO if rank() == 0 else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(message)s")
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    return args


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def synchronise(models: list[nn.Module], progress: float) -> float:
    """Averages gradients over the processes of a ``torchrun``; returns the processes' mean ``progress``, so that
    all of them stop at the same update. One synchronisation an update: on a busy CPU single-threaded processes
    are several times faster than threads that wait for each other in every operator."""
    if not dist.is_initialized():
        return progress
    gradients = [p.grad for model in models for p in model.parameters() if p.grad is not None]
    flat = torch.cat([*(g.flatten() for g in gradients), torch.tensor([progress])])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, part in zip(gradients, flat[:-1].split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
    return flat[-1].item()


class Clock:
    """Wall-clock progress of a training, 0 to 1; ``spent`` seconds went by before a resume."""

    def __init__(self, minutes: float, spent: float = 0.0) -> None:
        self.start = time.monotonic() - spent
        self.total = minutes * 60

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    @property
    def progress(self) -> float:
        return min(1.0, self.seconds / self.total)


class Average:
    """Exponential moving average of weights with warm-up: decay = min(limit, (1 + n) / (10 + n))."""

    def __init__(self, model: nn.Module, limit: float = 0.999) -> None:
        self.model, self.limit, self.updates = copy.deepcopy(model).eval().requires_grad_(False), limit, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.updates += 1
        decay = min(self.limit, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)


def to_tensor(pixels: np.ndarray) -> Tensor:
    """uint8 [n, 64, 64, 3] to float32 [n, 3, 64, 64] in [-1, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def save_atomically(state: object, path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def write_card(work: Path, name: str, values: dict[str, object]) -> None:
    """Measured facts of one training, for the manifest."""
    temporary = work / f"{name}.json.tmp"
    temporary.write_text(json.dumps(values, indent=2) + "\n")
    os.replace(temporary, work / f"{name}.json")
