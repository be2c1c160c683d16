"""The one intervention: inside `gated(...)` a denoiser's sites are skipped, or mixed with what they gave last.

Hard gates (a `Schedule`) and soft ones (a tensor) share the hooks. Soft gates of 0 and 1 give the numbers of the hard
schedule, but only the hard one saves the work. A reused site gives a combination of the values that it computed last,
or the last of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint as checkpointed

from dipgo.errors import DipgoError
from dipgo.execute.hooks import hooked, reentrant
from dipgo.execute.run import CallHook
from dipgo.execute.trace import Outcome, Trace
from dipgo.execute.trajectory import OUTPUT, Trajectory
from dipgo.execute.values import add, check_branches, combine, mix, pushed, residuals, snapshot, subtract
from dipgo.graph import BlockGraph, Site, Stream, resolve
from dipgo.schedule import Schedule

Forward = Callable[..., Any]


class _CallHook(CallHook):
    """On the denoiser: runs it, or gives its last output where nothing in it runs."""

    def __init__(self, run: Trajectory, checkpoint: bool, recomputed: str | None) -> None:
        super().__init__(run)
        self.checkpoint, self.recomputed = checkpoint, recomputed
        self.entered = run.execution.entered if run.hard else np.ones(run.calls, dtype=bool)

    def make(self, sample: torch.Tensor, forward: Forward, args: tuple, kwargs: dict[str, Any]) -> Any:
        run, call = self.run, self.run.call
        if run.entered == 0:
            run.trace.clear()
            if self.recomputed and torch.is_grad_enabled():
                raise DipgoError(
                    f"gradient checkpointing would run {self.recomputed} a second time; switch it off by "
                    "denoiser.disable_gradient_checkpointing() and give gated(..., checkpoint=True)"
                )
            if run.branches == 1 and run.coefficients is not None and run.coefficients.ndim == 4:
                check_branches(sample, run.coefficients.shape[3])
        run.trace.ran[call] = self.entered[call]
        if not self.entered[call]:
            run.trace.outcomes[call] = np.where(run.execution.reused[call], Outcome.REUSED, Outcome.DEAD)
            return snapshot(run.past(OUTPUT))
        run.take_row()
        # In call 0 no gate has a say, so there is no gradient to keep anything for.
        if self.checkpoint and call > 0 and torch.is_grad_enabled():
            output = self._recomputed(forward, args, kwargs)
        else:
            with run.under_way(run.computed[call]):
                output = forward(*args, **kwargs)
        if call + 1 < run.calls and not self.entered[call + 1]:
            run.memory[OUTPUT] = snapshot(output)
        return output

    def _recomputed(self, forward: Forward, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Run the forward with one checkpoint around it: only its sample and the sites' values are kept of a call.

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
                leaves_after, form_after = tree_flatten((forward(*args, **kwargs), run.memory))
            return tuple(leaves_after)

        leaves_after = checkpointed(segment, *run.row, *leaves, use_reentrant=True, preserve_rng_state=False)
        output, run.memory = tree_unflatten(list(leaves_after), form_after)
        return output


class _SiteHook:
    """On a gated module: its value (output or delta) is computed, reused, or mixed of the new and the last one.

    The model gets what the module made. A snapshot of that is remembered, and a snapshot of what is remembered is
    given again, so that nobody can write into the memory.
    """

    def __init__(self, run: Trajectory, index: int, streams: Sequence[Stream]) -> None:
        self.run, self.index, self.streams = run, index, streams
        self.name = run.sites[index]
        self.delta = Site.parse(self.name).delta

    def __call__(self, module: nn.Module, forward: Forward, /, *args: Any, **kwargs: Any) -> Any:
        run, call = self.run, self.run.call
        run.reach(self.index)
        if run.hard and not run.execution.computed[call, self.index]:
            reused = run.execution.reused[call, self.index]
            run.trace.outcomes[call, self.index] = Outcome.REUSED if reused else Outcome.DEAD
            past = run.past(self.name)
            # A dead block returns its last output. Nobody reads it; only its shape matters.
            value = self._reused(past) if reused else past[0]
            return add(value, residuals(module, self.streams, args, kwargs)) if self.delta else snapshot(value)
        run.trace.outcomes[call, self.index] = Outcome.COMPUTED
        if run.hard and not run.kept[call, self.index]:
            run.memory.pop(self.name, None)
            return forward(*args, **kwargs)
        past, gates = run.memory.get(self.name), run.row[0]
        shortcut = getattr(module, "conv_shortcut", None) if self.delta else None
        # At a gate of exactly 1 no gradient reaches the new value: its backward pass is spared, but for a shortcut's.
        wasted = gates is not None and shortcut is None and run.fully_reused[call, self.index]
        streams = [snapshot(stream.of(args, kwargs)) for stream in self.streams]  # some modules add to it in place
        with torch.set_grad_enabled(torch.is_grad_enabled() and not wasted):
            new, shortened = self._compute(forward, shortcut, args, kwargs)
        streams = streams if shortened is None else [shortened]
        value = subtract(new, streams) if self.delta else new
        shifted = pushed(snapshot(value), past, run.depth)
        if gates is not None and call > 0:
            past = run.past(self.name)
            gate = gates[self.index]
            value = mix(gate, self._reused(past), value)
            new = add(value, streams) if self.delta else value
            if run.coefficients is None:
                shifted = [snapshot(value)]
            elif run.execution is not None and run.execution.dead[call, self.index]:
                shifted = past  # where a schedule's block is dead, it computes no value to remember
            else:
                shifted = [mix(gate, old, fresh) for old, fresh in zip(past, shifted, strict=True)]
        run.memory[self.name] = shifted
        return new

    def _reused(self, past: list[Any]) -> Any:
        coefficients = self.run.row[1]
        return past[0] if coefficients is None else combine(coefficients[self.index], past)

    def _compute(
        self, forward: Forward, shortcut: nn.Module | None, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[Any, torch.Tensor | None]:
        """Return the module's new output and what its shortcut convolution, if it has one, gave meanwhile."""
        given: list[torch.Tensor | None] = [None]
        handle = shortcut and shortcut.register_forward_hook(lambda *call: given.append(call[-1]))
        try:
            return forward(*args, **kwargs), given[-1]
        finally:
            if handle:
                handle.remove()


@reentrant
def gated(
    denoiser: nn.Module,
    graph: BlockGraph,
    gates: Schedule | torch.Tensor,
    *,
    coefficients: torch.Tensor | None = None,
    calls_per_step: int = 1,
    checkpoint: bool = False,
) -> Iterator[Trace]:
    """Apply gates to `denoiser` for as many full sampler runs as happen inside the context; yield their `Trace`.

    denoiser: the model; inside the context only the thread that entered it may call it.
    graph: its sites, from `trace_graph`.
    gates: a `Schedule`: blocks are skipped, dead ones do not run, and a call whose output would be the last one's is
        not entered. Or a tensor [calls, sites] in [0, 1] with row 0 all zero (1 = reuse): everything is computed, and
        the result is differentiable.
    coefficients: what a reused site gives, a combination of its last K computed values, differentiable: [calls, sites,
        K] or, for each guidance branch, [calls, sites, K, branches]. Without them they are the schedule's, or the last
        value is held. No more than K values of a site are kept.
    calls_per_step: 2 where a pipeline passes the guidance branches one after the other.
    checkpoint: recompute each call in the backward pass, which then has to happen inside the context, instead of
        keeping its activations (4.1).

    Raises `PartialTrajectory` at a call whose timestep does not continue its run, and on leaving in the middle of a
    run; `DipgoError` for gates of another shape, a denoiser that is gated already, guidance branches that come one
    after the other unannounced, and calls for which the values to reuse are missing.
    """
    _check(graph, gates, coefficients)
    run = Trajectory(denoiser, graph, gates, coefficients, calls_per_step)
    sites = [_SiteHook(run, index, streams) for index, streams in enumerate(graph.streams)]
    try:
        with hooked(denoiser, graph, sites, _CallHook(run, checkpoint, _recomputed_site(denoiser, graph))):
            yield run.trace
    finally:
        run.left = True
        run.forget()
    run.leave()


def _check(graph: BlockGraph, gates: Schedule | torch.Tensor, coefficients: torch.Tensor | None) -> None:
    """Raise `DipgoError` for gates and coefficients of a wrong shape or range."""
    if isinstance(gates, torch.Tensor):
        if gates.ndim != 2 or gates.shape[1] != len(graph.sites) or not len(gates):
            raise DipgoError(f"gates have shape {tuple(gates.shape)}, expected [calls, {len(graph.sites)}]")
        given = gates.detach()
        if bool(given[0].any()):
            raise DipgoError("gates reuse in call 0, where nothing has been computed yet; clear their first row")
        if not given.is_meta and not bool(((given >= 0) & (given <= 1)).all()):
            raise DipgoError("gates must lie between 0 (compute) and 1 (reuse); clamp them")
    shape = (gates.reuse if isinstance(gates, Schedule) else gates).shape
    if coefficients is not None and (coefficients.ndim not in (3, 4) or coefficients.shape[:2] != shape):
        raise DipgoError(
            f"coefficients have shape {tuple(coefficients.shape)}, expected [{shape[0]}, {shape[1]}, K] or, for each "
            "guidance branch, K and branches"
        )


def _recomputed_site(denoiser: nn.Module, graph: BlockGraph) -> str | None:
    """Return the first site inside of a module that diffusers' gradient checkpointing runs again, if there is one."""
    for site in graph.sites:
        path = Site.parse(site).module.split(".")
        around = [resolve(denoiser, ".".join(path[:depth])) for depth in range(len(path))] if path[0] else []
        if any(getattr(module, "gradient_checkpointing", False) for module in around):
            return site
    return None
