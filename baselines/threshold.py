"""Dynamic caches at matched work: the threshold at which a policy spends the MACs that a run asks for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from baselines.plan import Plan, PlanContext
from baselines.preparation import Estimate, Lesson, Pictures, Preparation, Step
from dipgo import Diffusion, Policy, Schedule, deciding, family_of, rollout
from dipgo.errors import DipgoError
from dipgo.state import State

FURTHEST = 12
"""How often the threshold is doubled at most, before the ratio counts as out of reach."""


@dataclass(frozen=True)
class Bisection(Pictures):
    """How the threshold is found, and on which pictures."""

    pictures: int = 8
    """On how many pictures the MACs are averaged."""
    rounds: int = 8
    """How many thresholds are tried between one that prunes too little and one that prunes enough."""

    @property
    def chosen(self) -> Pictures:
        """The pictures alone, for what does not depend on the threshold."""
        return Pictures(self.pictures, self.prompts, self.seed)


@dataclass(frozen=True)
class ThresholdSearch(Lesson):
    """The lowest threshold found at which a policy prunes the asked share of the MACs, as a mean over pictures."""

    settings: Bisection
    ratio: float
    """The share of the MACs that is pruned at least."""
    released: float
    """The threshold that the authors' code has by default; the search begins there."""
    policy: Callable[[PlanContext, float], Policy]
    """Makes the policy of a threshold."""
    decided_by: Mapping[str, Any]
    """The method's name and the parameters that decide the policy beside the threshold."""
    needs: Mapping[str, Preparation] = field(default_factory=dict)

    folder, title = "thresholds", "threshold"

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise DipgoError(f"ratio is {self.ratio}; it must lie between 0 and 1")
        if self.settings.rounds < 1:
            raise DipgoError(f"rounds is {self.settings.rounds}; it must be at least 1")

    def identity(self) -> dict[str, Any]:
        return {**self.decided_by, "ratio": self.ratio, **asdict(self.settings)}

    def macs(self, run: Estimate) -> float:
        return self.settings.pictures * run.macs * run.share * self.total

    @property
    def total(self) -> int:
        return self.settings.rounds + FURTHEST

    def steps(self, context: PlanContext, state: State | None) -> Iterator[Step]:
        """Try one threshold a step: the released one, then its doubles until one prunes enough, then the middle."""
        context = on_deltas(context, self.decided_by["method"])
        tried: list[tuple[float, float]] = [tuple(each) for each in state.data["tried"]] if state else []
        best: dict[str, Any] = dict(state.data["best"]) if state else {}
        while True:
            if not state:
                threshold = self._next(tried)
                if threshold is None:
                    return
                schedules = self._decide(context, self.policy(context, threshold))
                pruned = [context.costs.pruned_ratio(schedule) for schedule in schedules]
                mean = float(np.mean(pruned))
                tried = [*tried, (threshold, mean)]
                if mean >= self.ratio and threshold <= min(t for t, p in tried if p >= self.ratio):
                    best = _found(threshold, schedules, pruned)
            state = None
            data = {"tried": tried, "best": best}
            shown = {"threshold": tried[-1][0], "pruned": tried[-1][1]}
            yield Step(shown, lambda data=data: State({}, data), lambda log, best=best: {**best, "tried": log})

    def _next(self, tried: Sequence[tuple[float, float]]) -> float | None:
        """Return the threshold to try next, or None where the search is over.

        Raises `DipgoError` where no threshold prunes enough.
        """
        if not tried:
            return self.released
        enough = [threshold for threshold, pruned in tried if pruned >= self.ratio]
        low = [threshold for threshold, pruned in tried if pruned < self.ratio]
        if not enough:
            if len(tried) > FURTHEST:
                most = max(pruned for _, pruned in tried)
                raise DipgoError(
                    f"{self.decided_by['method']} prunes {most:.3f} of the MACs at most, at any threshold, where "
                    f"{self.ratio:g} is asked; allow it more by its other parameters"
                )
            return 2 * max(low)
        if len(tried) - self._doublings(tried) > self.settings.rounds:
            return None
        return (max((t for t in low if t < min(enough)), default=0.0) + min(enough)) / 2

    def _doublings(self, tried: Sequence[tuple[float, float]]) -> int:
        """Return how many thresholds were too low before the first that was not."""
        return next(index for index, (_, pruned) in enumerate(tried) if pruned >= self.ratio)

    def _decide(self, context: PlanContext, policy: Policy) -> list[Schedule]:
        """Return what the policy decides on each picture to learn from, drawn one by one."""
        studio, dense = context.studio, context.dense().schedule
        diffusion = Diffusion(context.denoiser, context.sampler, studio.guidance)
        captions, seeds = self.settings.drawn(studio)
        with deciding(context.denoiser, context.graph, dense, policy) as schedules:
            for caption, seed in zip(captions, seeds, strict=True):
                rollout(diffusion, studio.pictures([caption], [seed]))
        return schedules

    def account(self, kept: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"threshold": {name: kept[name] for name in ("threshold", "pruned", "distinct")}}

    def plan(self, context: PlanContext) -> Plan:
        """Return the plan of the threshold that was found, kept from before or found now."""
        context, kept = on_deltas(context, self.decided_by["method"]), self.make(context)
        schedule = Schedule.from_dict(kept["schedule"])
        return Plan(context.sampler, schedule, context.costs, self.policy(context, kept["threshold"]))


def _found(threshold: float, schedules: Sequence[Schedule], pruned: Sequence[float]) -> dict[str, Any]:
    """Return what is kept of a threshold. Its schedule is that of the picture whose MACs come nearest to the mean from
    below."""
    mean = float(np.mean(pruned))
    typical = min((share, index) for index, share in enumerate(pruned) if share >= mean - 1e-9)[1]
    distinct = len(Counter(schedule.digest for schedule in schedules))
    return {
        "threshold": threshold,
        "pruned": mean,
        "distinct": distinct,
        "schedule": schedules[typical].to_dict(),
    }


def on_deltas(context: PlanContext, method: str) -> PlanContext:
    """Return the context over the blocks' deltas. Raises `DipgoError` for a U-Net, whose blocks add to several streams.

    method: who asks, for the message.
    """
    if family_of(context.denoiser).layers is not None:
        raise DipgoError(f"{method} is made for transformers, and this denoiser is a U-Net")
    return context.at_unit("delta")
