"""SmoothCache: all layers of a kind are held together, for as long as calibration says that they hardly change.

https://arxiv.org/abs/2411.10510. The paper holds for 3 calls at most, which prunes 0.75 at most; here the limit is a
setting, and the threshold follows from the ratio.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from baselines.plan import Plan, PlanContext
from baselines.preparation import Estimate, Lesson, Pictures, Preparation, Step
from dipgo import BlockGraph, Diffusion, Inputs, Schedule, Site, UnreachableRatio, observed, rollout
from dipgo.errors import DipgoError
from dipgo.state import State

EXAMPLES = ({"ratio": 0.2, "learn": {"pictures": 2, "longest": 4}},)


@dataclass(frozen=True)
class LookAhead(Pictures):
    """Which dense runs to calibrate on, and how far ahead to look."""

    pictures: int = 8
    longest: int = 50
    """The most calls in a row in which a layer is held."""


@dataclass(frozen=True)
class HoldingErrors(Lesson):
    """How far a layer's value is from those of the calls before, by kinds of layers."""

    settings: LookAhead

    folder, title, total = "holding", "errors of holding", 1

    def identity(self) -> dict[str, Any]:
        return asdict(self.settings)

    def macs(self, run: Estimate) -> float:
        return self.settings.pictures * run.macs

    def steps(self, context: PlanContext, state: State | None) -> Iterator[Step]:
        studio, settings = context.studio, self.settings
        if settings.longest < 1:
            raise DipgoError(f"learn.longest is {settings.longest}; it must be at least 1")
        diffusion = Diffusion(context.denoiser, context.sampler, studio.guidance)
        drawn = zip(*settings.drawn(studio), strict=True)
        errors = [
            holding_errors(diffusion, context.graph, studio.pictures([caption], [seed]), settings.longest)
            for caption, seed in drawn
        ]
        mean = {kind: np.mean([each[kind] for each in errors], axis=0).round(5).tolist() for kind in errors[0]}
        shown = {"error": float(np.mean([rows[1][0] for rows in mean.values()]))}
        yield Step(shown, lambda: State({}, {}), lambda log: {"errors": mean})

    def read(self, result: Mapping[str, Any]) -> dict[str, np.ndarray]:
        return {kind: np.array(rows) for kind, rows in result["errors"].items()}


@torch.no_grad()
def holding_errors(diffusion: Diffusion, graph: BlockGraph, inputs: Inputs, longest: int) -> dict[str, np.ndarray]:
    """Return the mean relative L1 error of holding by kinds of layers, float [calls, longest].

    The number at [call, k] says how far the values of a call are from those of k + 1 calls before, relative to their
    own size. It is 0 where there is no such call.
    """
    calls, kinds = diffusion.sampler.calls, [Site.parse(site).kind for site in graph.sites]
    errors = {kind: np.zeros((calls, longest)) for kind in dict.fromkeys(kinds)}
    past: list[list[torch.Tensor]] = [[] for _ in graph.sites]
    seen = [0] * len(graph.sites)

    def see(index: int, value: Any) -> None:
        new = torch.cat([leaf.flatten() for leaf in tree_leaves(value)])
        size = new.abs().mean().clamp_min(1e-12)
        for gap, old in enumerate(past[index]):
            errors[kinds[index]][seen[index], gap] += float((new - old).abs().mean() / size) / kinds.count(kinds[index])
        past[index] = [new, *past[index]][:longest]
        seen[index] += 1

    with observed(diffusion.denoiser, graph, see):
        rollout(diffusion, inputs)
    return errors


def held(errors: np.ndarray, threshold: float) -> np.ndarray:
    """Return where a kind of layers is reused, bool [calls]: after each computed call, as long as the error of holding
    its value is within the threshold."""
    reuse = np.zeros(len(errors), dtype=bool)
    last = 0
    for call in range(1, len(errors)):
        gap = call - last
        reuse[call] = gap <= errors.shape[1] and errors[call, gap - 1] <= threshold
        last = last if reuse[call] else call
    return reuse


@dataclass(frozen=True)
class Params:
    """The parameters of `plan`."""

    ratio: float
    """The least share of the MACs to prune, of all operations."""
    learn: LookAhead = LookAhead()
    """The settings of the calibration."""


def prepares(params: Params) -> tuple[Preparation, ...]:
    """The errors of holding are measured on dense runs."""
    return (HoldingErrors(params.learn),)


def plan(context: PlanContext, params: Params) -> Plan:
    """Hold by the smallest threshold that prunes the ratio; the thresholds that differ are the errors themselves.

    Raises `UnreachableRatio` where holding as long as the settings allow prunes less.
    """
    if not 0 < params.ratio < 1:
        raise DipgoError(f"pruned ratio is {params.ratio}; it must lie strictly between 0 and 1")
    context = context.at_unit("layer")
    errors = prepares(params)[0].make(context)
    kinds = [Site.parse(site).kind for site in context.graph.sites]

    def schedule(threshold: float) -> Schedule:
        reuse = {kind: held(rows, threshold) for kind, rows in errors.items()}
        return Schedule(context.graph.sites, np.stack([reuse[kind] for kind in kinds], axis=1))

    def pruned(threshold: float) -> float:
        return context.costs.pruned_ratio(schedule(threshold), "full")

    thresholds = np.unique(np.concatenate([rows.ravel() for rows in errors.values()]))
    if pruned(thresholds[-1]) < params.ratio:
        raise UnreachableRatio(
            f"SmoothCache prunes {pruned(thresholds[-1]):.4f} at most here, not {params.ratio}; ask for that or less"
        )
    chosen = thresholds[bisect_left(thresholds, params.ratio, key=pruned)]
    return Plan(context.sampler, schedule(chosen), context.costs)
