"""The one intervention: inside `gated(...)` a denoiser's sites are skipped, or mixed with what they gave last.

Hard (a `Schedule`) and soft (a tensor of gates) share one hook. A hard 0/1 gate and a soft one give the same
numbers; only the hard one saves the work.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from diffusers.hooks import ModelHook
from torch import nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.checkpoint import checkpoint as checkpointed

from dipgo.errors import DipgoError, PartialTrajectory
from dipgo.graph import BlockGraph, Site, hidden_states
from dipgo.hooks import hooked
from dipgo.schedule import Schedule
from dipgo.trace import Outcome, Trace

OUTPUT = object()  # the key of the denoiser's own output among the remembered values


class _Run:
    """Position in the trajectory and the last values, shared by all hooks of one `gated` context."""

    def __init__(self, graph: BlockGraph, gates: Schedule | torch.Tensor, calls_per_step: int) -> None:
        self.calls, self.branches = len(gates.reuse if isinstance(gates, Schedule) else gates), calls_per_step
        self.trace = Trace(graph.sites, self.calls)
        self.entered = 0
        self.first_timestep: float | None = None
        self.last: list[dict[Any, Any]] = [{} for _ in range(calls_per_step)]
        self.soft = None if isinstance(gates, Schedule) else gates
        self.row: torch.Tensor | None = None  # of `soft`, in this call
        self.fully_reused = None if self.soft is None else (self.soft.detach() == 1).cpu().numpy()
        self.left = False  # the context
        self.execution = graph.execute(gates) if isinstance(gates, Schedule) else None

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

    @contextmanager
    def at(self, entered: int, row: torch.Tensor, memory: dict[Any, Any]) -> Iterator[None]:
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


class _CallHook(ModelHook):
    """On the denoiser: counts calls, since no pipeline tells a hook its step; holds the output where nothing runs."""

    def __init__(self, run: _Run, checkpoint: bool) -> None:
        super().__init__()
        self.run, self.checkpoint = run, checkpoint
        self.entered = np.ones(run.calls, dtype=bool) if run.execution is None else run.execution.entered

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        run, call = self.run, self.run.call
        self._refuse_separate_branches(kwargs["timestep"] if "timestep" in kwargs else args[1])
        run.trace.ran[call] = self.entered[call]
        if self.entered[call]:
            run.row = None if run.soft is None else run.soft[call]
            # In call 0 no gate has a say, so there is no gradient to keep anything for.
            recompute = self.checkpoint and call > 0 and torch.is_grad_enabled()
            output = (self._recomputed if recompute else self.fn_ref.original_forward)(*args, **kwargs)
            run.memory[OUTPUT] = output
        else:
            run.trace.outcomes[call] = np.where(run.execution.reused[call], Outcome.REUSED, Outcome.DEAD)
            output = run.memory[OUTPUT]
        run.advance()
        return output

    def _recomputed(self, *args: Any, **kwargs: Any) -> Any:
        """The forward with one checkpoint around it: what stays of a call is its sample and the sites' values.

        The sites' hooks find the state of this call again when the backward pass recomputes it.
        """
        run, entered = self.run, self.run.entered
        leaves, form = tree_flatten((args, kwargs, run.memory))
        form_after = None

        def segment(row: torch.Tensor, *leaves: Any) -> tuple[Any, ...]:
            nonlocal form_after
            if run.left:
                raise DipgoError("with gated(..., checkpoint=True) the backward pass belongs inside the context")
            args, kwargs, memory = tree_unflatten(list(leaves), form)
            with run.at(entered, row, memory):
                leaves_after, form_after = tree_flatten((self.fn_ref.original_forward(*args, **kwargs), run.memory))
            return tuple(leaves_after)

        leaves_after = checkpointed(segment, run.row, *leaves, use_reentrant=True, preserve_rng_state=False)
        output, run.memory = tree_unflatten(list(leaves_after), form_after)
        return output

    def _refuse_separate_branches(self, timestep: Any) -> None:
        """No sampler calls twice at its first timestep, but a pipeline with one guidance pass after the other does.

        Its branches would take turns in one cache, unnoticed, since their calls add up to full trajectories.
        """
        run = self.run
        if run.branches > 1 or run.entered > 1:
            return
        timestep = float(torch.as_tensor(timestep).flatten()[0])
        if run.entered == 0:
            run.first_timestep = timestep
        elif timestep == run.first_timestep:
            raise DipgoError(
                "the denoiser was called twice at its first timestep: this pipeline passes the guidance branches one "
                "after the other; give gated(..., calls_per_step=2)"
            )


class _SiteHook(ModelHook):
    """On a gated module: its value (output or delta) is computed, reused, or mixed of the new and the last one."""

    def __init__(self, run: _Run, index: int) -> None:
        super().__init__()
        self.run, self.index = run, index
        self.name = run.trace.sites[index]
        self.delta = Site.parse(self.name).delta

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        run, call = self.run, self.run.call
        if run.execution is not None and not run.execution.computed[call, self.index]:
            reused = run.execution.reused[call, self.index]
            run.trace.outcomes[call, self.index] = Outcome.REUSED if reused else Outcome.DEAD
            last = run.memory[self.name]  # of a dead block: a stand-in of the right shape that nobody reads
            return add(last, residual(module, args, kwargs)) if self.delta else last
        shortcut = getattr(module, "conv_shortcut", None) if self.delta else None
        # At a gate of exactly 1 no gradient reaches the new value: its backward pass is spared, but for a shortcut's.
        wasted = run.row is not None and shortcut is None and run.fully_reused[call, self.index]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not wasted):
            new, stream = self._compute(shortcut, args, kwargs)
        value = add(new, -stream) if self.delta else new
        run.trace.outcomes[call, self.index] = Outcome.COMPUTED
        if run.row is not None and call > 0:
            value = reuse_softly(run.row[self.index], run.memory[self.name], value)
            new = add(value, stream) if self.delta else value
        run.memory[self.name] = value
        return new

    def _compute(self, shortcut: nn.Module | None, args: tuple, kwargs: dict[str, Any]) -> tuple[Any, torch.Tensor]:
        """The module's new output and the residual stream under it; a shortcut convolution runs only once."""
        stream = [hidden_states(args, kwargs)]
        handle = shortcut and shortcut.register_forward_hook(lambda *call: stream.append(call[-1]))
        try:
            return self.fn_ref.original_forward(*args, **kwargs), stream[-1]
        finally:
            if handle:
                handle.remove()


def residual(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> torch.Tensor:
    """What a block adds its branch to: its input, through a convolution where the width changes."""
    shortcut = getattr(module, "conv_shortcut", None)
    stream = hidden_states(args, kwargs)
    return stream if shortcut is None else shortcut(stream)


def reuse_softly(gate: torch.Tensor, last: Any, new: Any) -> Any:
    """g * last + (1 - g) * new on every tensor of a site's value (section 3.3; g is the reuse gate here)."""
    return tree_map(lambda old, fresh: gate * old + (1 - gate) * fresh, last, new)


def add(value: Any, stream: torch.Tensor) -> Any:
    return tree_map(lambda tensor: tensor + stream, value)


@contextmanager
def gated(
    denoiser: nn.Module,
    graph: BlockGraph,
    gates: Schedule | torch.Tensor,
    *,
    calls_per_step: int = 1,
    checkpoint: bool = False,
) -> Iterator[Trace]:
    """Apply gates to `denoiser` for as many full sampler runs as happen inside the context.

    `gates` is a `Schedule` (blocks are skipped, dead ones do not run, a call is not entered whose output would
    be the last one's), or a tensor [calls, sites] in [0, 1] with row 0 all zero (1 = reuse; differentiable,
    everything is computed). Set `calls_per_step=2` where a pipeline passes the guidance branches one after
    the other. `checkpoint` recomputes each call in the backward pass, which then has to happen inside the
    context, instead of keeping its activations (4.1).

    Yields the `Trace` of what ran. Raises `PartialTrajectory` on leaving in the middle of a run, and
    `DipgoError` for gates of another shape, a denoiser that is gated already, or guidance branches that
    come one after the other unannounced.
    """
    if isinstance(gates, torch.Tensor) and (gates.ndim != 2 or gates.shape[1] != len(graph.sites)):
        raise DipgoError(f"gates have shape {tuple(gates.shape)}, expected [calls, {len(graph.sites)}]")
    if isinstance(gates, torch.Tensor) and bool(gates[0].detach().any()):
        raise DipgoError("gates reuse in call 0, where nothing has been computed yet; clear their first row")
    run = _Run(graph, gates, calls_per_step)
    sites = [_SiteHook(run, index) for index in range(len(graph.sites))]
    try:
        with hooked(denoiser, graph, sites, _CallHook(run, checkpoint)):
            yield run.trace
    finally:
        run.left = True
    if run.entered:
        raise PartialTrajectory(
            f"the denoiser was called {run.entered} times of {run.calls * run.branches} in its last run; "
            "is the schedule for another scheduler or step count?"
        )
