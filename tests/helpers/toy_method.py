"""A method that learns something, in one file: which calls change their output least, seen on dense runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from baselines.plan import Plan, PlanContext
from baselines.preparation import Estimate, Lesson, Preparation, Step
from dipgo import Diffusion, picture_seeds, rollout
from dipgo.state import State

EXAMPLES = ({"calls": 2, "look": {"pictures": 2}},)


@dataclass(frozen=True)
class Look:
    """What is looked at."""

    pictures: int = 3


@dataclass(frozen=True)
class Changes(Lesson):
    """The change of the output from call to call, float [calls], averaged over pictures."""

    settings: Look

    folder, title = "changes", "look at changes"

    def identity(self) -> dict[str, Any]:
        return asdict(self.settings)

    def macs(self, run: Estimate) -> float:
        return self.settings.pictures * run.macs

    @property
    def total(self) -> int:
        return self.settings.pictures

    def steps(self, context: PlanContext, state: State | None) -> Iterator[Step]:
        total, done = (state.tensors["total"], state.data["done"]) if state else (torch.zeros(context.sampler.calls), 0)
        captions, seeds = context.studio.captions("train"), picture_seeds(7, range(self.total))
        if done:
            yield self.step(total, done)
        for number in range(done, self.total):
            total = total + self.changes(context, context.studio.pictures([captions[number]], [seeds[number]]))
            yield self.step(total, number + 1)

    def step(self, total: torch.Tensor, done: int) -> Step:
        shown = {"change": total.mean().item()}
        return Step(shown, lambda: State({"total": total}, {"done": done}), lambda log: {"changes": total.tolist()})

    @torch.no_grad()
    def changes(self, context: PlanContext, pictures: Any) -> torch.Tensor:
        outputs = []
        handle = context.denoiser.register_forward_hook(lambda module, args, output: outputs.append(output[0]))
        try:
            rollout(Diffusion(context.denoiser, context.sampler, context.studio.guidance), pictures)
        finally:
            handle.remove()
        return torch.stack([(b - a).square().mean() for a, b in pairwise([outputs[0], *outputs])])


@dataclass(frozen=True)
class Params:
    """How many calls are computed, and what they are chosen by."""

    calls: int
    look: Look = Look()


def prepares(params: Params) -> tuple[Preparation, ...]:
    return (Changes(params.look),)


def plan(context: PlanContext, params: Params) -> Plan:
    changes = np.array(prepares(params)[0].make(context)["changes"])
    changes[0] = np.inf
    return context.skipping(sorted(np.argsort(-changes, kind="stable")[: params.calls].tolist()))
