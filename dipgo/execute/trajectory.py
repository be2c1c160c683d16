"""The state of a `gated` context: where in its run the denoiser is, and what its sites gave last."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from dipgo.errors import DipgoError
from dipgo.execute.run import Run
from dipgo.execute.trace import Trace
from dipgo.graph import BlockGraph, Execution
from dipgo.schedule import Schedule

OUTPUT = object()  # the key of the denoiser's own output among the remembered values
Row = tuple[torch.Tensor | None, torch.Tensor | None]
"""Soft gates [sites] and coefficients [sites, K] or [sites, K, branches] of a call."""


class Trajectory(Run):
    """A run, its gates and the last values, shared by all hooks of one `gated` context."""

    def __init__(
        self,
        denoiser: nn.Module,
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
        calls = len(gates.reuse if self.hard else gates)
        super().__init__(denoiser, graph.sites, calls, calls_per_step, getattr(gates, "timesteps", None))
        self.trace = Trace(graph.sites, calls)
        self.soft = None if self.hard else gates
        self.fully_reused = None if self.hard else (gates.detach() == 1).cpu().numpy()
        self.coefficients = coefficients
        self.depth = 1 if coefficients is None else coefficients.shape[2]
        self.row: Row = (None, None)
        self.left = False  # the context
        self.execution = graph.execute(gates) if self.hard else _as_hard(graph, gates)
        self.kept = _read_later(self.execution, self.depth) if self.hard else None
        computed = self.execution.computed if self.hard else np.ones((calls, len(graph.sites)), dtype=bool)
        self.computed = [np.flatnonzero(row).tolist() for row in computed]  # sites by call
        self.forget()

    def forget(self) -> None:
        """Forget the last values of every site."""
        self.last: list[dict[Any, Any]] = [{} for _ in range(self.branches)]

    def begin(self) -> None:
        super().begin()
        self.forget()

    def reshape(self) -> None:
        """Values of another shape are of no use: whoever reads one is refused."""
        self.forget()

    @property
    def memory(self) -> dict[Any, Any]:
        """The last values of this guidance branch: branches in separate calls must not share a cache."""
        return self.last[self.entered % self.branches]

    @memory.setter
    def memory(self, values: dict[Any, Any]) -> None:
        self.last[self.entered % self.branches] = values

    def past(self, key: Any) -> Any:
        """Return what is remembered of a site or of the denoiser. Raises `DipgoError` where that is nothing."""
        if key not in self.memory:
            raise DipgoError(
                f"call {self.call + 1} reuses {'the whole call' if key is OUTPUT else key}, but the batch has changed "
                f"to {tuple(self.shapes[0])} since that was computed (by guidance that ends midway?); compute it there"
            )
        return self.memory[key]

    def take_row(self) -> None:
        """Take out this call's gates and coefficients."""
        gates, coefficients = [None if rows is None else rows[self.call] for rows in (self.soft, self.coefficients)]
        if self.branches > 1 and coefficients is not None and coefficients.ndim == 3:
            coefficients = coefficients[..., self.entered % self.branches]
        self.row = (gates, coefficients)

    @contextmanager
    def at(self, entered: int, row: Row, memory: dict[Any, Any]) -> Iterator[None]:
        """Go back to another call, with its gates and the values before it."""
        now = self.entered, self.row, self.last
        self.entered, self.row = entered, row
        self.last = [memory] * self.branches
        try:
            with self.under_way(self.computed[self.call]):
                yield
        finally:
            self.entered, self.row, self.last = now


def _read_later(execution: Execution, depth: int) -> np.ndarray:
    """Return bool [calls, sites]: whether a call reads the value that is computed there, among the last `depth` ones.

    A dead block reads its last value, too: it gives it for its shape. To keep more would cost memory.
    """
    gaps = np.cumsum(execution.computed, axis=0)
    calls, sites = np.nonzero(~execution.computed & execution.entered[:, None])
    read = np.zeros((len(gaps) + 1, gaps.shape[1]), dtype=bool)
    for k in range(depth):
        read[np.maximum(gaps[calls, sites] - k, 0), sites] = True
    return execution.computed & np.take_along_axis(read, gaps, axis=0)


def _as_hard(graph: BlockGraph, gates: torch.Tensor) -> Execution | None:
    """Return what gates of 0 and 1 alone make of the sites, or None where there are others."""
    reuse = gates.detach().cpu().numpy()
    return graph.execute(Schedule(graph.sites, reuse == 1)) if np.isin(reuse, (0, 1)).all() else None
