"""The authors' published gates of SD-1.5 as a `Schedule`. No GPU is needed, and no code in the file is run.

The file is a pickled list with one dict a timestep. Its keys are ("down", "block", i, 0), ("mid", "mid_block", 0, 0)
and ("up", "block", j, 0), where j counts from the output side; its values are vectors [reuse, compute] on a GPU.
"""

from __future__ import annotations

import io
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dipgo.errors import DipgoError
from dipgo.sampling import Sampler
from dipgo.schedule import Schedule

Key = tuple[str, str, int, int]


def import_released(path: Path, sites: Sequence[str], sampler: Sampler) -> Schedule:
    """Return the schedule of a published gate file.

    path: the file.
    sites: the blocks of a U-Net in order of execution.
    sampler: the sampler that the gates are for.

    A block is reused where the larger of its two values says so (arg-max, section 3.3), but never in the first step,
    which is always computed (3.2). Calls of one step share a row: PLMS makes two in its second. Raises `DipgoError` for
    a file that asks for anything but tensors, or is for other blocks or another number of steps.
    """
    steps = _read(path)
    if not isinstance(steps, list) or not all(isinstance(gates, dict) for gates in steps):
        raise DipgoError(f"{path}: not published gates, which are a list with one dict a timestep")
    if len(steps) != sampler.charged_steps:
        raise DipgoError(f"{path}: gates of {len(steps)} timesteps, but the sampler has {sampler.charged_steps} steps")
    keys = [_key(site, sites) for site in sites]
    for number, gates in enumerate(steps):
        if odd := set(gates) ^ set(keys):
            raise DipgoError(f"{path}: step {number} differs from the model's blocks in {min(map(str, odd))}")
    reuse = np.array([[_reused(path, number, gates, key) for key in keys] for number, gates in enumerate(steps)])
    reuse[0] = False
    return sampler.stamped(Schedule(tuple(sites), reuse[sampler.call_steps]))


def _key(site: str, sites: Sequence[str]) -> Key:
    """Return the name that the file has for a block."""
    side, _, index = site.partition("_blocks.")
    if site == "mid_block":
        return ("mid", "mid_block", 0, 0)
    count = sum(other.startswith(f"{side}_blocks.") for other in sites)
    return (side, "block", count - 1 - int(index) if side == "up" else int(index), 0)


def _reused(path: Path, step: int, gates: dict[Key, Any], key: Key) -> bool:
    gate = gates[key]
    numbers = isinstance(gate, torch.Tensor) and not gate.is_complex() and gate.shape == (2,)
    if not numbers or not gate.double().isfinite().all():
        raise DipgoError(f"{path}: step {step}, {key}: not a vector of two numbers, [reuse, compute]")
    return int(gate.double().argmax()) == 0


def _read(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return _TensorsOnly(file).load()
    except OSError as error:
        raise DipgoError(f"{path}: {error.strerror or error}; give the published gate file") from None
    except _Refused as refused:
        raise DipgoError(f"{path}: asks for {refused}, which published gates have no use for; not read") from None
    except Exception as error:  # a damaged pickle may raise nearly anything
        raise DipgoError(f"{path}: not a pickle of tensors ({type(error).__name__}: {error})".split("\n")[0]) from None


class _Refused(Exception):
    """Raised with the name that a pickle asked for and may not have."""


class _TensorsOnly(pickle.Unpickler):
    """Builds tensors on the CPU and plain containers; any other name is refused before it is even looked up."""

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        # Made anew for each file: a pickle may set attributes of what it is given.
        self.allowed = {
            ("collections", "OrderedDict"): OrderedDict,
            ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),  # how old pickles write bytes
            ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, size, stride, *_: _tensor(
                storage, offset, size, stride
            ),
            ("torch.storage", "_load_from_bytes"): lambda data: _storage(data),
        }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise _Refused(f"{module}.{name}")
        return self.allowed[module, name]


def _storage(data: bytes) -> Any:
    """Return a tensor's values, which torch saved within the pickle; torch's reader has an allow-list, too."""
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise _Refused(asked[1] if asked else "code inside a tensor") from None


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls the kind of storage that such pickles hold outdated
        return torch.empty(0, dtype=storage.dtype).set_(storage.untyped(), offset, size, stride)
