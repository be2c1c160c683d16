"""What all trainings share: the zoo's folders, pixels as tensors, batches, and files of weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from dipgo.files import write_bytes, write_text

ZOO = Path(__file__).resolve().parents[1]
CHECKPOINTS = ZOO / "checkpoints"


def to_tensor(pixels: np.ndarray) -> Tensor:
    """Returns float32 [n, 3, 64, 64] in [-1, 1] of uint8 [n, 64, 64, 3]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def batches(count: int, size: int) -> Iterator[Tensor]:
    """Yields row numbers [size] for ever; every pass over the ``count`` rows is shuffled anew."""
    order = torch.empty(0, dtype=torch.long)
    while True:
        while len(order) < size:
            order = torch.cat([order, torch.randperm(count)])
        yield order[:size]
        order = order[size:]


def write_json(path: Path, values: object) -> None:
    write_text(path, json.dumps(values, indent=2) + "\n")


def write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Writes floating-point weights as float16 safetensors, others as they are."""
    write_bytes(path, save({k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in weights.items()}))
