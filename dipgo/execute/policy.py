"""Policies: what is reused in a call is decided while the call runs. What a picture got is a `Schedule`.

`gated` with that schedule gives the same latents, and costs are counted from it. So caches that look at the sample need
no second way of skipping, and none of counting.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from dipgo.errors import DipgoError
from dipgo.execute.hooks import hooked, reentrant
from dipgo.execute.run import CallHook, Run
from dipgo.execute.values import add, combine, pushed, residuals, snapshot, subtract
from dipgo.graph import BlockGraph, Stream
from dipgo.rules import Forecast
from dipgo.schedule import Schedule


@dataclass(frozen=True)
class Question:
    """What a policy may look at when it decides a call."""

    call: int
    """The number of the call in its run, from 0."""
    block: nn.Module
    """The first block that is not computed yet."""
    args: tuple
    """The positional arguments with which this block is called."""
    kwargs: Mapping[str, Any]
    """Its keyword arguments."""
    entered: torch.Tensor
    """The stream that came into the first site in this call, [rows, tokens, width] in a transformer."""
    stream: torch.Tensor
    """The stream that comes into `block`. It is `entered` itself where no site leads."""


class Policy(ABC):
    """Decides for each call whether its sites are computed. One policy serves one picture after the other.

    Its criterion sees the whole batch at once. So pictures that share a batch would share its decisions: draw them one
    by one.
    """

    lead: int = 0
    """How many sites are computed in every call, before the policy is asked about the others."""
    rule: Forecast | None = None
    """Extrapolates the values of reused sites; None holds the last one."""

    @abstractmethod
    def begin(self) -> None:
        """Forget the last picture, since another begins."""

    @abstractmethod
    def computes(self, question: Question) -> bool:
        """Tell whether this call computes the sites after the leading ones. Call 0 does, whatever the answer."""


@reentrant
def deciding(denoiser: nn.Module, graph: BlockGraph, dense: Schedule, policy: Policy) -> Iterator[list[Schedule]]:
    """Let a policy decide every call inside the context; yield the list that gets one schedule for each sampler run.

    denoiser: the model; each call of it holds all guidance branches of one picture.
    graph: its sites, from `trace_graph`; all are deltas.
    dense: a schedule of these sites that gives the number of calls and, where it has them, their timesteps.
    policy: what is asked in each call.

    Raises `DipgoError` for sites that are no deltas, and as `gated` does for calls that do not fit.
    """
    run = _Run(denoiser, graph, dense, policy)
    sites = [_SiteHook(run, index, streams) for index, streams in enumerate(graph.streams)]
    with torch.no_grad(), hooked(denoiser, graph, sites, _CallHook(run)):
        yield run.decided
    run.leave()


class _Run(Run):
    """A run under a policy: what it has decided so far, and the last values of the sites."""

    def __init__(self, denoiser: nn.Module, graph: BlockGraph, dense: Schedule, policy: Policy) -> None:
        graph.check(dense)
        if any(len(streams) != 1 for streams in graph.streams):
            raise DipgoError("a policy decides about what blocks add to a stream; take sites of the unit delta")
        if not 0 <= policy.lead < len(graph.sites):
            raise DipgoError(f"{policy.lead} blocks lead; it must lie between 0 and {len(graph.sites) - 1}")
        super().__init__(denoiser, graph.sites, dense.calls, timesteps=dense.timesteps)
        self.policy, self.dense = policy, dense
        self.depth = 1 if policy.rule is None else policy.rule.order + 1
        self.decided: list[Schedule] = []

    def begin(self) -> None:
        super().begin()
        self.reuse = np.zeros((self.calls, len(self.sites)), dtype=bool)
        self.weights = np.zeros((self.calls, self.depth), dtype=np.float32)  # of the values of the sites reused there
        self.memory: dict[int, list[Any]] = {}  # the last values of each site, newest first
        self.stream: torch.Tensor | None = None
        self.policy.begin()

    def reshape(self) -> None:
        raise DipgoError("the batch has changed in the middle of a run under a policy; draw with the same guidance")

    def advance(self) -> None:
        if self.call + 1 == self.calls:
            coefficients = None if self.policy.rule is None else self.reuse[..., None] * self.weights[:, None]
            self.decided.append(Schedule(self.sites, self.reuse, coefficients, self.dense.timesteps))
        super().advance()

    def ask(self, block: nn.Module, stream: torch.Tensor, args: tuple, kwargs: Mapping[str, Any]) -> None:
        """Have the policy decide about this call."""
        call = self.call
        question = Question(call, block, args, kwargs, stream if self.stream is None else self.stream, stream)
        if not self.policy.computes(question) and call > 0:
            self.reuse[call, self.policy.lead :] = True
            computed = np.flatnonzero(~self.reuse[:call, -1])
            rule = self.policy.rule
            self.weights[call] = 1 if rule is None else rule.weights(call, computed[::-1][: self.depth])


class _CallHook(CallHook):
    """On the denoiser: it runs in every call."""

    def make(self, sample: torch.Tensor, forward: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        self.run.stream = None
        with self.run.under_way():
            return forward(*args, **kwargs)


class _SiteHook:
    """On a block: it asks the policy, where it is the first that does not lead, and then runs or reuses."""

    def __init__(self, run: _Run, index: int, streams: Sequence[Stream]) -> None:
        self.run, self.index, self.streams = run, index, streams

    def __call__(self, module: nn.Module, forward: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        run, index = self.run, self.index
        run.reach(index)
        streams = residuals(module, self.streams, args, kwargs)
        if index == run.policy.lead:
            run.ask(module, streams[0], args, kwargs)
        elif index == 0:
            run.stream = snapshot(streams[0])
        if run.reuse[run.call, index]:
            past = run.memory[index]
            weights = torch.from_numpy(run.weights[run.call])
            return add(past[0] if run.policy.rule is None else combine(weights, past), streams)
        streams = snapshot(streams)  # some modules add to it in place
        new = forward(*args, **kwargs)
        run.memory[index] = pushed(snapshot(subtract(new, streams)), run.memory.get(index), run.depth)
        return new
