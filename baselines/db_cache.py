"""DBCache (https://github.com/vipshop/cache-dit), with or without its Taylor calibrator: the first blocks run in every
call, and the others are reused while what those add has hardly changed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from baselines.first_block_cache import FirstBlocks
from baselines.plan import Plan, PlanContext
from baselines.preparation import Preparation
from baselines.threshold import Bisection, ThresholdSearch
from dipgo import Forecast, Policy
from dipgo.errors import DipgoError

RELEASED = 0.08  # the threshold that cache-dit has by default
EXAMPLES = (
    {"ratio": 0.3, "lead": 1, "warmup": 2, "learn": {"pictures": 2, "rounds": 2}},
    {"ratio": 0.3, "lead": 1, "warmup": 2, "calibrated": True, "learn": {"pictures": 2, "rounds": 2}},
)


@dataclass(frozen=True)
class Calibrated(Forecast):
    """The Taylor calibrator at its released order 1: a line through the last two values. It knows no slope before call
    3, so that a shorter warm-up holds at first."""

    order: int = 1

    def weights(self, call: int, last: np.ndarray) -> np.ndarray:
        return super().weights(call, last if last[0] >= 3 else last[:1])


@dataclass(frozen=True)
class Params:
    """The parameters of `plan`."""

    ratio: float
    """The share of the MACs that is pruned, as a mean over pictures."""
    lead: int = 8
    """How many blocks run in every call."""
    warmup: int = 8
    """How many calls are computed in any case, from the first on."""
    calibrated: bool = False
    """Whether reused values are continued by a Taylor series of order 1, or held."""
    learn: Bisection = Bisection()
    """How the threshold is found."""


def prepares(params: Params) -> tuple[Preparation, ...]:
    """The threshold is found on training pictures."""
    for name in ("lead", "warmup"):
        if getattr(params, name) < 1:
            raise DipgoError(f"DBCache's {name} is {getattr(params, name)}; it must be at least 1")

    def policy(context: PlanContext, threshold: float) -> Policy:
        rule = Calibrated(np.arange(context.sampler.calls)) if params.calibrated else None
        return FirstBlocks(threshold, params.lead, params.warmup, rule)

    made_by = {"method": "db_cache", **{name: getattr(params, name) for name in ("lead", "warmup", "calibrated")}}
    return (ThresholdSearch(params.learn, params.ratio, RELEASED, policy, made_by),)


def plan(context: PlanContext, params: Params) -> Plan:
    """Let the first blocks decide each call of each picture."""
    return prepares(params)[-1].plan(context)
