"""Arithmetic on what a site gives: a tensor, or a tree of tensors (a U-Net's down block gives its skip connections,
too)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from dipgo.graph import hidden_states


def residual(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> torch.Tensor:
    """What a block adds its branch to: its input, through a convolution where the width changes."""
    shortcut = getattr(module, "conv_shortcut", None)
    stream = hidden_states(args, kwargs)
    return stream if shortcut is None else shortcut(stream)


def mix(gate: torch.Tensor, last: Any, new: Any) -> Any:
    """g * last + (1 - g) * new on every tensor of a site's value (section 3.3; g is the reuse gate here)."""
    return tree_map(lambda old, fresh: gate * old + (1 - gate) * fresh, last, new)


def combine(coefficients: torch.Tensor, past: Sequence[Any]) -> Any:
    """The sum over k of coefficients [K] x the k-th last value, on every tensor of a site's value."""
    return tree_map(lambda *values: sum(c * v for c, v in zip(coefficients, values, strict=True)), *past)


def add(value: Any, stream: torch.Tensor) -> Any:
    return tree_map(lambda tensor: tensor + stream, value)
