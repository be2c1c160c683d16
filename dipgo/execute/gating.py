"""The one intervention: inside `gated(...)` a denoiser's sites are skipped, or mixed with what they gave last.

Hard (a `Schedule`) and soft (a tensor of gates) share one hook. A hard 0/1 gate and a soft one give the same
numbers; only the hard one saves the work. What a reused site gives is a combination of the values that it computed
last, or the last of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from diffusers.hooks import ModelHook
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint as checkpointed

from dipgo.errors import DipgoError, PartialTrajectory
from dipgo.execute.hooks import hooked
from dipgo.execute.trace import Outcome, Trace
from dipgo.execute.trajectory import OUTPUT, Trajectory
from dipgo.execute.values import add, combine, mix, residual
from dipgo.graph import BlockGraph, Site, hidden_states
from dipgo.schedule import Schedule


class _CallHook(ModelHook):
    """On the denoiser: counts calls, since no pipeline tells a hook its step; holds the output where nothing runs."""

    def __init__(self, run: Trajectory, checkpoint: bool) -> None:
        super().__init__()
        self.run, self.checkpoint = run, checkpoint
        self.entered = run.execution.entered if run.hard else np.ones(run.calls, dtype=bool)

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        run, call = self.run, self.run.call
        self._compare_first_timesteps(kwargs["timestep"] if "timestep" in kwargs else args[1])
        run.trace.ran[call] = self.entered[call]
        if self.entered[call]:
            run.begin()
            # In call 0 no gate has a say, so there is no gradient to keep anything for.
            recompute = self.checkpoint and call > 0 and torch.is_grad_enabled()
            output = (self._recomputed if recompute else self.fn_ref.original_forward)(*args, **kwargs)
            if call + 1 < run.calls and not self.entered[call + 1]:
                run.memory[OUTPUT] = output
        else:
            run.trace.outcomes[call] = np.where(run.execution.reused[call], Outcome.REUSED, Outcome.DEAD)
            output = run.memory[OUTPUT]
        run.advance()
        if run.entered == 0:
            _refuse_separate_branches(run)
        return output

    def _recomputed(self, *args: Any, **kwargs: Any) -> Any:
        """The forward with one checkpoint around it: what stays of a call is its sample and the sites' values.

        The sites' hooks find the state of this call again when the backward pass recomputes it.
        """
        run, entered = self.run, self.run.entered
        leaves, form = tree_flatten((args, kwargs, run.memory))
        form_after = None

        def segment(gates: torch.Tensor | None, coefficients: torch.Tensor | None, *leaves: Any) -> tuple[Any, ...]:
            nonlocal form_after
            if run.left:
                raise DipgoError("with gated(..., checkpoint=True) the backward pass belongs inside the context")
            args, kwargs, memory = tree_unflatten(list(leaves), form)
            with run.at(entered, (gates, coefficients), memory):
                leaves_after, form_after = tree_flatten((self.fn_ref.original_forward(*args, **kwargs), run.memory))
            return tuple(leaves_after)

        leaves_after = checkpointed(segment, *run.row, *leaves, use_reentrant=True, preserve_rng_state=False)
        output, run.memory = tree_unflatten(list(leaves_after), form_after)
        return output

    def _compare_first_timesteps(self, timestep: Any) -> None:
        """On the device, where the outcome stays until the trajectory is through: to read it means to wait."""
        run = self.run
        if run.branches > 1 or run.entered > 1:
            return
        timestep = torch.as_tensor(timestep).flatten()[0]
        if run.entered == 0:
            run.first_timestep = timestep
        else:
            run.twice_at_first = timestep == run.first_timestep


def _refuse_separate_branches(run: Trajectory) -> None:
    """No sampler calls twice at its first timestep, but a pipeline with one guidance pass after the other does.

    Its branches would take turns in one cache, unnoticed, since their calls add up to full trajectories.
    """
    if run.twice_at_first:
        raise DipgoError(
            "the denoiser was called twice at its first timestep: this pipeline passes the guidance branches one "
            "after the other; give gated(..., calls_per_step=2)"
        )


class _SiteHook(ModelHook):
    """On a gated module: its value (output or delta) is computed, reused, or mixed of the new and the last one."""

    def __init__(self, run: Trajectory, index: int) -> None:
        super().__init__()
        self.run, self.index = run, index
        self.name = run.trace.sites[index]
        self.delta = Site.parse(self.name).delta

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        run, call = self.run, self.run.call
        past, gates = run.memory.get(self.name), run.row[0]
        if run.hard and not run.execution.computed[call, self.index]:
            reused = run.execution.reused[call, self.index]
            run.trace.outcomes[call, self.index] = Outcome.REUSED if reused else Outcome.DEAD
            # Of a dead block: a stand-in of the right shape that nobody reads.
            value = self._reused(past) if reused else past[0]
            return add(value, residual(module, args, kwargs)) if self.delta else value
        if run.hard and not run.kept[call, self.index]:
            run.trace.outcomes[call, self.index] = Outcome.COMPUTED
            run.memory.pop(self.name, None)
            return self.fn_ref.original_forward(*args, **kwargs)
        shortcut = getattr(module, "conv_shortcut", None) if self.delta else None
        # At a gate of exactly 1 no gradient reaches the new value: its backward pass is spared, but for a shortcut's.
        wasted = gates is not None and shortcut is None and run.fully_reused[call, self.index]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not wasted):
            new, stream = self._compute(shortcut, args, kwargs)
        value = add(new, -stream) if self.delta else new
        run.trace.outcomes[call, self.index] = Outcome.COMPUTED
        shifted = [value] * run.depth if past is None else [value, *past[:-1]]
        if gates is not None and call > 0:
            gate = gates[self.index]
            value = mix(gate, self._reused(past), value)
            new = add(value, stream) if self.delta else value
            if run.coefficients is None:
                shifted = [value]
            elif run.execution is not None and run.execution.dead[call, self.index]:
                shifted = past  # where a schedule's block is dead, it computes no value to remember
            else:
                shifted = [mix(gate, old, fresh) for old, fresh in zip(past, shifted, strict=True)]
        run.memory[self.name] = shifted
        return new

    def _reused(self, past: list[Any]) -> Any:
        coefficients = self.run.row[1]
        return past[0] if coefficients is None else combine(coefficients[self.index], past)

    def _compute(self, shortcut: nn.Module | None, args: tuple, kwargs: dict[str, Any]) -> tuple[Any, torch.Tensor]:
        """The module's new output and the residual stream under it; a shortcut convolution runs only once."""
        stream = [hidden_states(args, kwargs)]
        handle = shortcut and shortcut.register_forward_hook(lambda *call: stream.append(call[-1]))
        try:
            return self.fn_ref.original_forward(*args, **kwargs), stream[-1]
        finally:
            if handle:
                handle.remove()


@contextmanager
def gated(
    denoiser: nn.Module,
    graph: BlockGraph,
    gates: Schedule | torch.Tensor,
    *,
    coefficients: torch.Tensor | None = None,
    calls_per_step: int = 1,
    checkpoint: bool = False,
) -> Iterator[Trace]:
    """Apply gates to `denoiser` for as many full sampler runs as happen inside the context.

    `gates` is a `Schedule` (blocks are skipped, dead ones do not run, a call is not entered whose output would
    be the last one's), or a tensor [calls, sites] in [0, 1] with row 0 all zero (1 = reuse; differentiable,
    everything is computed). `coefficients` [calls, sites, K] or, of each guidance branch, [calls, sites, K, branches],
    differentiable, say what a reused site gives, a combination of its last K computed values; by default they are the
    schedule's, or the last value is held.
    No more than K values of a site are kept. Set `calls_per_step=2` where a pipeline passes the guidance branches
    one after the other. `checkpoint` recomputes each call in the backward pass, which then has to happen inside
    the context, instead of keeping its activations (4.1).

    Yields the `Trace` of what ran. Raises `PartialTrajectory` on leaving in the middle of a run, and
    `DipgoError` for gates of another shape, a denoiser that is gated already, or guidance branches that
    come one after the other unannounced.
    """
    if isinstance(gates, torch.Tensor) and (gates.ndim != 2 or gates.shape[1] != len(graph.sites)):
        raise DipgoError(f"gates have shape {tuple(gates.shape)}, expected [calls, {len(graph.sites)}]")
    if isinstance(gates, torch.Tensor) and bool(gates[0].detach().any()):
        raise DipgoError("gates reuse in call 0, where nothing has been computed yet; clear their first row")
    shape = (gates.reuse if isinstance(gates, Schedule) else gates).shape
    if coefficients is not None and (coefficients.ndim not in (3, 4) or coefficients.shape[:2] != shape):
        raise DipgoError(
            f"coefficients have shape {tuple(coefficients.shape)}, expected [{shape[0]}, {shape[1]}, K] or, for each "
            "guidance branch, K and branches"
        )
    run = Trajectory(graph, gates, coefficients, calls_per_step)
    sites = [_SiteHook(run, index) for index in range(len(graph.sites))]
    try:
        with hooked(denoiser, graph, sites, _CallHook(run, checkpoint)):
            yield run.trace
    finally:
        run.left = True
    if run.entered:
        _refuse_separate_branches(run)
        raise PartialTrajectory(
            f"the denoiser was called {run.entered} times of {run.calls * run.branches} in its last run; "
            "is the schedule for another scheduler or step count?"
        )
