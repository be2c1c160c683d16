"""Arithmetic on a site's value: a tensor, or a tree of tensors (a down block of a U-Net also gives its skip
connections). What is no tensor in it stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map, tree_map_only

from dipgo.errors import DipgoError
from dipgo.graph import Stream


def snapshot(value: Any) -> Any:
    """Return a copy of every tensor, with its layout. The memory is copied when somebody first writes into either.

    So what is remembered is safe from writes of the model and of its caller, for a few microseconds where nobody
    writes. A tensor that occurs twice in the tree does so in the copy.
    """
    return tree_map_only(torch.Tensor, cache(_copied_on_write), value)


def _copied_on_write(tensor: torch.Tensor) -> torch.Tensor:
    try:
        return torch._lazy_clone(tensor)
    except RuntimeError:  # memory that is not torch's, such as a NumPy array's
        return tensor.clone()


def each(function: Callable[..., torch.Tensor], value: Any, *others: Any) -> Any:
    """Return the tree with `function` of every tensor in `value` and of those at its place in the other trees."""
    return tree_map(lambda v, *rest: function(v, *rest) if isinstance(v, torch.Tensor) else v, value, *others)


def residuals(module: nn.Module, streams: Sequence[Stream], args: tuple, kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """Return what a block adds its branches to, for each of its outputs: the stream that it continues, through a
    convolution where the width changes."""
    shortcut = getattr(module, "conv_shortcut", None)
    given = [stream.of(args, kwargs) for stream in streams]
    return given if shortcut is None else [shortcut(stream) for stream in given]


def pushed(value: Any, past: Sequence[Any] | None, depth: int) -> list[Any]:
    """Return the last `depth` values of a site, newest first: a new one before those of the past. What would precede
    the first value counts as equal to it."""
    return [value] * depth if past is None else [value, *past[:-1]]


def mix(gate: torch.Tensor, last: Any, new: Any) -> Any:
    """Return g * last + (1 - g) * new for every tensor of a site's value (section 3.3; g is the reuse gate here)."""
    return each(lambda old, fresh: gate * old + (1 - gate) * fresh, last, new)


def combine(coefficients: torch.Tensor, past: Sequence[Any]) -> Any:
    """Return the sum over k of coefficients[k] * past[k] for every tensor of a site's value.

    Coefficients [K] count for all rows of a batch. With coefficients [K, branches] the batch holds that many guidance
    branches, one after the other, and each has a column. Raises `DipgoError` where the rows do not divide into them.
    """
    if coefficients.ndim == 2:
        count = coefficients.shape[1]
        parts = [combine(column, _branch(past, b, count)) for b, column in enumerate(coefficients.unbind(1))]
        return each(lambda *rows: torch.cat(rows), *parts)
    return each(lambda *values: sum(c * v for c, v in zip(coefficients, values, strict=True)), *past)


def _branch(values: Any, branch: int, count: int) -> Any:
    """Return the rows of one of `count` guidance branches, for every tensor."""

    def rows(value: torch.Tensor) -> torch.Tensor:
        if len(value) % count:
            raise DipgoError(
                f"a batch of {len(value)} rows does not hold {count} guidance branches, as the schedule's do"
            )
        return value.chunk(count)[branch]

    return each(rows, values)


def check_branches(sample: torch.Tensor, count: int) -> None:
    """Raise unless the sample's rows are `count` guidance branches, one after the other.

    All branches of a picture see one latent. Its first channel is compared: some pipelines put an image, which differs
    by branch, into the last ones.
    """
    parts = sample.chunk(count)
    if len(sample) % count or not all(torch.equal(part[:, :1], parts[0][:, :1]) for part in parts[1:]):
        raise DipgoError(
            f"the schedule's coefficients are for {count} guidance branches in a batch, but this batch of "
            f"{len(sample)} rows holds none: draw with guidance, or learn a schedule without"
        )


def add(value: Any, streams: Sequence[torch.Tensor]) -> Any:
    """Return `value` with each of its tensors plus the stream at its place."""
    left = iter(streams)
    return tree_map_only(torch.Tensor, lambda tensor: tensor + next(left), value)


def subtract(value: Any, streams: Sequence[torch.Tensor]) -> Any:
    """Return `value` with each of its tensors minus the stream at its place."""
    return add(value, [-stream for stream in streams])
