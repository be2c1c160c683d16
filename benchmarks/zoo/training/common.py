"""What all trainings share: the zoo's folders, pixels as tensors, and files that are written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

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


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Calls ``write`` with a temporary path and then renames that file to ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name("unfinished-" + path.name)
    write(temporary)
    os.replace(temporary, path)


def write_json(path: Path, values: object) -> None:
    write_whole(path, lambda temporary: temporary.write_text(json.dumps(values, indent=2) + "\n"))


def write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Writes floating-point weights as float16 safetensors, others as they are."""
    stored = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in weights.items()}
    write_whole(path, lambda temporary: save_file(stored, temporary))
