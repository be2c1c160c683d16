"""What a training keeps, so that it can go on after it was stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dipgo.errors import DipgoError


@dataclass(frozen=True)
class State:
    """All that a training or a learning needs to go on after a step as if it had never stopped, bit for bit.

    It can be kept without pickle, for instance as `safetensors.torch.save_file(state.tensors, path, {"data":
    json.dumps(state.data)})`, whose inverse is `safetensors.safe_open`.
    """

    tensors: Mapping[str, torch.Tensor]
    """Copies on the CPU."""
    data: Mapping[str, Any]
    """Plain JSON values; among them are the settings, as "config"."""

    def check(self, config: Mapping[str, Any]) -> None:
        """Raise `DipgoError` where the state was made with other settings."""
        for name, value in config.items():
            made = self.data["config"].get(name)
            if made != value:
                raise DipgoError(f"the state was made with {name} = {made!r}, not {value!r}; begin anew without it")


def copied(tensors: Mapping[str, torch.Tensor], prefix: str = "") -> dict[str, torch.Tensor]:
    """Return copies on the CPU, with a prefix before each name."""
    return {prefix + name: values.detach().cpu().clone().contiguous() for name, values in tensors.items()}
