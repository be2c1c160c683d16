"""Calibrations of dynamic caches: what changes from call to call in dense runs, and what is fitted to that."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from baselines.plan import PlanContext
from baselines.preparation import Estimate, Lesson, Pictures, Step
from baselines.threshold import on_deltas
from dipgo import Diffusion, Site, rollout
from dipgo.graph import resolve
from dipgo.state import State


@dataclass(frozen=True)
class Seen:
    """What was seen of one call of a dense run."""

    block: nn.Module
    """The first block."""
    args: tuple
    """The positional arguments with which it was called."""
    kwargs: Mapping[str, Any]
    """Its keyword arguments."""
    entered: torch.Tensor
    """The stream that came into the first block, [rows, tokens, width]."""
    left: torch.Tensor
    """The stream that came out of the last block, likewise."""
    output: torch.Tensor
    """What the denoiser gave, [rows, channels, h, w]."""


@dataclass(frozen=True)
class Calibration(Lesson):
    """Numbers from each pair of neighbouring calls of dense runs, picture by picture, and what is made of them."""

    settings: Pictures
    method: str
    """The method that it is for."""
    measure: Callable[[Seen, Seen], tuple[float, ...]]
    """Gives the numbers of a call and the one after it."""
    fit: Callable[[np.ndarray], Mapping[str, Any]]
    """Makes the result, in plain JSON values, of all numbers: float [pictures, calls - 1, numbers]."""

    folder, title = "calibrations", "calibration"

    def identity(self) -> dict[str, Any]:
        return {"method": self.method, **asdict(self.settings)}

    def macs(self, run: Estimate) -> float:
        return self.settings.pictures * run.macs

    @property
    def total(self) -> int:
        return self.settings.pictures

    def steps(self, context: PlanContext, state: State | None) -> Iterator[Step]:
        context, studio = on_deltas(context, self.method), context.studio
        diffusion = Diffusion(context.denoiser, context.sampler, studio.guidance)
        numbers = list(state.data["numbers"]) if state else []
        drawn = list(zip(*self.settings.drawn(studio), strict=True))
        if state:
            yield self._step(numbers)
        for caption, seed in drawn[len(numbers) :]:
            with torch.no_grad(), self._watched(context) as found:
                rollout(diffusion, studio.pictures([caption], [seed]))
            numbers = [*numbers, found]
            yield self._step(numbers)

    def _step(self, numbers: list[list[tuple[float, ...]]]) -> Step:
        shown = {"pictures": float(len(numbers))}
        return Step(shown, lambda: State({}, {"numbers": numbers}), lambda log: dict(self.fit(np.array(numbers))))

    @contextmanager
    def _watched(self, context: PlanContext) -> Iterator[list[tuple[float, ...]]]:
        """Yield the list that gets the numbers of each pair of calls of the one picture that is drawn inside."""
        first, last = (resolve(context.denoiser, Site.parse(context.graph.sites[at]).module) for at in (0, -1))
        numbers: list[tuple[float, ...]] = []
        calls: list[Seen] = []  # the last one
        now: dict[str, Any] = {}

        def enter(block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            (stream,) = context.graph.streams[0]
            now.update(block=block, args=args, kwargs=kwargs, entered=stream.of(args, kwargs).clone())

        def leave(block: nn.Module, args: tuple, output: torch.Tensor) -> None:
            now["left"] = output

        def end(denoiser: nn.Module, args: tuple, output: Any) -> None:
            seen = Seen(output=output[0], **now)
            if calls:
                numbers.append(self.measure(calls.pop(), seen))
            calls.append(seen)

        handles = [
            first.register_forward_pre_hook(enter, with_kwargs=True),
            last.register_forward_hook(leave),
            context.denoiser.register_forward_hook(end),
        ]
        try:
            yield numbers
        finally:
            for handle in handles:
                handle.remove()


def moved(before: torch.Tensor, now: torch.Tensor) -> float:
    """Return the mean absolute change from one tensor to another, relative to the mean absolute value of the first."""
    return float((now - before).abs().mean() / before.abs().mean())
