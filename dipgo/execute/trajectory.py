"""Where a gated denoiser stands in its sampler run, and what its sites gave last: shared by all hooks of a context."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from dipgo.execute.trace import Trace
from dipgo.graph import BlockGraph, Execution
from dipgo.schedule import Schedule

OUTPUT = object()  # the key of the denoiser's own output among the remembered values
Row = tuple[torch.Tensor | None, torch.Tensor | None]
"""Soft gates [sites] and coefficients [sites, K] or [sites, K, branches] of a call."""


class Trajectory:
    """Position in the trajectory and the last values, shared by all hooks of one `gated` context."""

    def __init__(
        self,
        graph: BlockGraph,
        gates: Schedule | torch.Tensor,
        coefficients: torch.Tensor | None,
        calls_per_step: int,
    ) -> None:
        self.hard = isinstance(gates, Schedule)
        if self.hard and coefficients is not None:
            gates = replace(gates, coefficients=coefficients.detach().cpu().numpy())
        elif self.hard and gates.coefficients is not None:
            coefficients = torch.tensor(gates.coefficients)
        self.calls, self.branches = len(gates.reuse if self.hard else gates), calls_per_step
        self.trace = Trace(graph.sites, self.calls)
        self.entered = 0
        self.first_timestep: torch.Tensor | None = None
        self.twice_at_first: torch.Tensor | bool = False
        self.last: list[dict[Any, Any]] = [{} for _ in range(calls_per_step)]
        self.soft = None if self.hard else gates
        self.fully_reused = None if self.hard else (gates.detach() == 1).cpu().numpy()
        self.coefficients = coefficients
        self.depth = 1 if coefficients is None else coefficients.shape[2]
        self.row: Row = (None, None)
        self.left = False  # the context
        self.execution = graph.execute(gates) if self.hard else _as_hard(graph, gates)
        self.kept = _read_later(self.execution, self.depth) if self.hard else None

    @property
    def call(self) -> int:
        return self.entered // self.branches

    @property
    def memory(self) -> dict[Any, Any]:
        """Last values of this guidance branch: branches in separate calls must not share a cache."""
        return self.last[self.entered % self.branches]

    @memory.setter
    def memory(self, values: dict[Any, Any]) -> None:
        self.last[self.entered % self.branches] = values

    def begin(self) -> None:
        """Take out this call's gates and coefficients."""
        gates, coefficients = [None if rows is None else rows[self.call] for rows in (self.soft, self.coefficients)]
        if self.branches > 1 and coefficients is not None and coefficients.ndim == 3:
            coefficients = coefficients[..., self.entered % self.branches]
        self.row = (gates, coefficients)

    @contextmanager
    def at(self, entered: int, row: Row, memory: dict[Any, Any]) -> Iterator[None]:
        """Back at another call, with its gates and the values before it."""
        now = self.entered, self.row, self.last
        self.entered, self.row = entered, row
        self.last = [memory] * self.branches
        try:
            yield
        finally:
            self.entered, self.row, self.last = now

    def advance(self) -> None:
        self.entered += 1
        if self.entered == self.calls * self.branches:  # a full trajectory: the next one starts afresh
            self.entered = 0
            self.last = [{} for _ in range(self.branches)]


def _read_later(execution: Execution, depth: int) -> np.ndarray:
    """Bool [calls, sites]: whether a value that is computed there is among the last `depth` in a call that reads them,
    be it only as a stand-in of the right shape. To keep more would cost memory, and the time to find new."""
    gaps = np.cumsum(execution.computed, axis=0)
    calls, sites = np.nonzero(~execution.computed & execution.entered[:, None])
    read = np.zeros((len(gaps) + 1, gaps.shape[1]), dtype=bool)
    for k in range(depth):
        read[np.maximum(gaps[calls, sites] - k, 0), sites] = True
    return execution.computed & np.take_along_axis(read, gaps, axis=0)


def _as_hard(graph: BlockGraph, gates: torch.Tensor) -> Execution | None:
    """What gates of 0 and 1 alone would make of the sites; None where there are others."""
    reuse = gates.detach().cpu().numpy()
    return graph.execute(Schedule(graph.sites, reuse == 1)) if np.isin(reuse, (0, 1)).all() else None
