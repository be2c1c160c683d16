"""Processes on one or more machines that share a suite: which of them this is, and what they do together.

They are started by `accelerate launch` or, on CPUs, by `torchrun`, and see the same workspace. Alone, all of this does
nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

T = TypeVar("T")


class Shards:
    """Process `index` of `count`."""

    def __init__(self, index: int = 0, count: int = 1) -> None:
        self.index, self.count = index, count

    @property
    def device(self) -> torch.device:
        """Where this process computes: on a GPU where there is one."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def part(self) -> slice:
        """This process's part of any sequence: every count-th item."""
        return slice(self.index, None, self.count)

    def wait(self) -> None:
        """Until every process is here."""

    def map(self, function: Callable[[Sequence[T]], Sequence[Any]], items: Sequence[T]) -> list[Any]:
        """`function(items)`, of which every process works out its part; all of them get the whole."""
        return list(function(items))


ALONE = Shards()


class _Launched(Shards):
    def __init__(self, state: PartialState) -> None:
        super().__init__(state.process_index, state.num_processes)
        self.state = state

    @property
    def device(self) -> torch.device:
        return self.state.device

    def wait(self) -> None:
        self.state.wait_for_everyone()

    def map(self, function: Callable[[Sequence[T]], Sequence[Any]], items: Sequence[T]) -> list[Any]:
        places = range(len(items))[self.part]
        own = list(zip(places, function([items[place] for place in places]) if places else [], strict=True))
        return [value for _, value in sorted(gather_object(own), key=lambda pair: pair[0])]


@cache
def shards() -> Shards:
    """The processes that a launcher has started with this one, or this one alone."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return ALONE
    return _Launched(PartialState(cpu=not torch.cuda.is_available()))
