"""Arithmetic on what a site gives: a tensor, or a tree of tensors (a U-Net's down block gives its skip connections,
too)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from dipgo.errors import DipgoError
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
    """The sum over k of coefficients [K] x the k-th last value, on every tensor of a site's value; with coefficients
    [K, branches] for the rows of each guidance branch, which follow each other in a batch, by its own."""
    if coefficients.ndim == 2:
        own = [combine(of, _branch(past, b, coefficients.shape[1])) for b, of in enumerate(coefficients.unbind(1))]
        return tree_map(lambda *parts: torch.cat(parts), *own)
    return tree_map(lambda *values: sum(c * v for c, v in zip(coefficients, values, strict=True)), *past)


def _branch(values: Any, branch: int, count: int) -> Any:
    """The rows of one of `count` guidance branches, of every tensor."""

    def rows(value: torch.Tensor) -> torch.Tensor:
        if len(value) % count:
            raise DipgoError(
                f"a batch of {len(value)} rows does not hold {count} guidance branches, as the schedule's do"
            )
        return value.chunk(count)[branch]

    return tree_map(rows, values)


def add(value: Any, stream: torch.Tensor) -> Any:
    return tree_map(lambda tensor: tensor + stream, value)
