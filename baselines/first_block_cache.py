"""FirstBlockCache (ParaAttention, https://github.com/chengzeyi/ParaAttention; diffusers has it as a hook): the first
block runs in every call, and the others are reused while what it adds has hardly changed."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from baselines.calibration import moved
from baselines.plan import Plan, PlanContext
from baselines.preparation import Preparation
from baselines.threshold import Bisection, ThresholdSearch
from dipgo import Forecast, Policy, Question

RELEASED = 0.05  # the threshold that diffusers has by default
EXAMPLES = ({"ratio": 0.4, "learn": {"pictures": 2, "rounds": 2}},)


@dataclass
class FirstBlocks(Policy):
    """Computes a call where the change that the leading blocks make differs from the last computed call's by more than
    a threshold, in relative mean absolute terms."""

    threshold: float
    lead: int = 1
    warmup: int = 1
    """How many calls are computed in any case, from the first on."""
    rule: Forecast | None = None

    def begin(self) -> None:
        self.last: torch.Tensor | None = None

    def computes(self, question: Question) -> bool:
        change = question.stream - question.entered
        if question.call >= self.warmup and self.last is not None:
            if moved(self.last, change) <= self.threshold:
                return False
        self.last = change
        return True


@dataclass(frozen=True)
class Params:
    """The parameters of `plan`."""

    ratio: float
    """The share of the MACs that is pruned, as a mean over pictures."""
    learn: Bisection = Bisection()
    """How the threshold is found."""


def prepares(params: Params) -> tuple[Preparation, ...]:
    """The threshold is found on training pictures."""
    made_by = {"method": "first_block_cache"}
    return (
        ThresholdSearch(params.learn, params.ratio, RELEASED, lambda _, threshold: FirstBlocks(threshold), made_by),
    )


def plan(context: PlanContext, params: Params) -> Plan:
    """Let the first block decide each call of each picture."""
    (search,) = prepares(params)
    return search.plan(context)
