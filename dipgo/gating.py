"""The one intervention: inside `gated(...)` a denoiser's blocks are skipped, or mixed with their last output.

Hard (a `Schedule`) and soft (a tensor of gates) share one hook. A hard 0/1 gate and a soft one give the same
numbers; only the hard one saves the work.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from diffusers.hooks import HookRegistry, ModelHook
from torch import nn
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint as recompute

from dipgo.errors import DipgoError, PartialTrajectory
from dipgo.graph import BlockGraph, resolve
from dipgo.schedule import Schedule

HOOK = "dipgo"


class Outcome(IntEnum):
    """What happened to a block in a call."""

    COMPUTED = 0
    REUSED = 1
    DEAD = 2


class Trace:
    """What really ran in the last full trajectory.

    `outcomes` is int8 [calls, sites] of `Outcome`; `ran` is bool [calls], true where the denoiser's forward
    was entered at all.
    """

    def __init__(self, sites: tuple[str, ...], calls: int) -> None:
        self.sites = sites
        self.outcomes = np.full((calls, len(sites)), Outcome.DEAD, dtype=np.int8)
        self.ran = np.zeros(calls, dtype=bool)


class _Run:
    """Position in the trajectory and the last outputs, shared by all hooks of one `gated` context."""

    def __init__(self, graph: BlockGraph, gates: Schedule | torch.Tensor, calls_per_step: int) -> None:
        self.calls, self.branches = len(gates.reuse if isinstance(gates, Schedule) else gates), calls_per_step
        self.trace = Trace(graph.sites, self.calls)
        self.entered = 0
        self.last: list[dict[str, Any]] = [{} for _ in range(calls_per_step)]
        self.soft = None if isinstance(gates, Schedule) else gates
        self.execution = graph.execute(gates) if isinstance(gates, Schedule) else None

    @property
    def call(self) -> int:
        return self.entered // self.branches

    @property
    def memory(self) -> dict[str, Any]:
        """Last outputs of this guidance branch: branches in separate calls must not share a cache."""
        return self.last[self.entered % self.branches]

    def advance(self) -> None:
        self.entered += 1
        if self.entered == self.calls * self.branches:  # a full trajectory: the next one starts afresh
            self.entered = 0
            self.last = [{} for _ in range(self.branches)]


class _DenoiserHook(ModelHook):
    """Counts calls, since no pipeline tells a hook its step; holds the prediction where no block runs."""

    def __init__(self, run: _Run) -> None:
        super().__init__()
        self.run = run
        self.runs = np.ones(run.calls, dtype=bool) if run.execution is None else run.execution.computed_calls

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        run = self.run
        run.trace.ran[run.call] = self.runs[run.call]
        if self.runs[run.call]:
            output = run.memory[""] = self.fn_ref.original_forward(*args, **kwargs)
        else:
            run.trace.outcomes[run.call] = np.where(run.execution.reused[run.call], Outcome.REUSED, Outcome.DEAD)
            output = run.memory[""]
        run.advance()
        return output


class _BlockHook(ModelHook):
    def __init__(self, run: _Run, index: int, checkpoint: bool) -> None:
        super().__init__()
        self.run, self.index, self.checkpoint = run, index, checkpoint

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        run, call, site = self.run, self.run.call, self.run.trace.sites[self.index]
        if run.execution is not None and not run.execution.computed[call, self.index]:
            reused = run.execution.reused[call, self.index]
            run.trace.outcomes[call, self.index] = Outcome.REUSED if reused else Outcome.DEAD
            return run.memory[site]  # of a dead block: a stand-in of the right shape that nobody reads
        # Around the original forward only: recomputing the hook itself would advance its state twice.
        forward = self.fn_ref.original_forward
        new = recompute(forward, *args, use_reentrant=False, **kwargs) if self.checkpoint else forward(*args, **kwargs)
        run.trace.outcomes[call, self.index] = Outcome.COMPUTED
        if run.soft is not None and call > 0:
            new = reuse_softly(run.soft[call, self.index], run.memory[site], new)
        run.memory[site] = new
        return new


def reuse_softly(gate: torch.Tensor, last: Any, new: Any) -> Any:
    """g * last + (1 - g) * new on every tensor of a block's output (section 3.3; g is the reuse gate here)."""
    return tree_map(lambda old, fresh: gate * old + (1 - gate) * fresh, last, new)


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

    `gates` is a `Schedule` (blocks are skipped, dead ones do not run, a call in which nothing runs costs
    nothing), or a tensor [calls, sites] in [0, 1] with row 0 all zero (1 = reuse; differentiable, everything
    is computed). Set `calls_per_step=2` where a pipeline passes the guidance branches one after the other.
    `checkpoint` recomputes each block in the backward pass instead of keeping its activations.

    Yields the `Trace` of what ran. Raises `PartialTrajectory` on leaving in the middle of a run, and
    `DipgoError` for gates of another shape or a denoiser that is gated already.
    """
    if isinstance(gates, torch.Tensor) and (gates.ndim != 2 or gates.shape[1] != len(graph.sites)):
        raise DipgoError(f"gates have shape {tuple(gates.shape)}, expected [calls, {len(graph.sites)}]")
    if isinstance(gates, torch.Tensor) and bool(gates[0].detach().any()):
        raise DipgoError("gates reuse in call 0, where nothing has been computed yet; clear their first row")
    run = _Run(graph, gates, calls_per_step)
    hooks = [(denoiser, _DenoiserHook(run))]
    hooks += [(resolve(denoiser, site), _BlockHook(run, i, checkpoint)) for i, site in enumerate(graph.sites)]
    for module, hook in hooks:
        registry = HookRegistry.check_if_exists_or_initialize(module)
        if HOOK in registry.hooks:
            raise DipgoError("this denoiser is gated already; leave the first context before entering another")
        registry.register_hook(hook, HOOK)
    try:
        yield run.trace
    finally:
        for module, _ in hooks:
            _unhook(module)
    if run.entered:
        raise PartialTrajectory(
            f"the denoiser was called {run.entered} times of {run.calls * run.branches} in its last run; "
            "is the schedule for another scheduler or step count?"
        )


def _unhook(module: nn.Module) -> None:
    """Remove our hook and, where it was the only one, all that diffusers put on the module for it."""
    registry = module._diffusers_hook
    registry.remove_hook(HOOK, recurse=False)
    if not registry.hooks:
        del module._diffusers_hook, module.forward  # the class's own forward shows again
