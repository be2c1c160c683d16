"""MagCache (https://arxiv.org/abs/2506.09045; diffusers has it as a hook): all blocks are reused while the product of
calibrated ratios of magnitude stays near 1. It looks at no sample, so every picture gets the same schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from baselines.calibration import Calibration, Seen
from baselines.plan import Plan, PlanContext
from baselines.preparation import Preparation
from baselines.threshold import Bisection, ThresholdSearch
from dipgo import Policy, Question

RELEASED = 0.06  # the threshold that diffusers has by default
EXAMPLES = ({"ratio": 0.3, "learn": {"pictures": 2, "rounds": 2}},)


@dataclass
class Magnitudes(Policy):
    """Reuses while the errors that add up since the last computed call stay within a threshold."""

    ratios: tuple[float, ...]
    """For each call, by how much the blocks' change is larger than in the call before; 1 for the first."""
    threshold: float
    max_skips: int = 3
    """How many calls in a row are reused at most."""
    retention: float = 0.2
    """The share of the calls, from the first on, that are computed in any case."""

    def begin(self) -> None:
        self.ratio, self.error, self.skips = 1.0, 0.0, 0

    def computes(self, question: Question) -> bool:
        if question.call < int(self.retention * len(self.ratios) + 0.5):
            return True
        self.ratio *= self.ratios[question.call]
        self.error += abs(1 - self.ratio)
        self.skips += 1
        if question.call and self.error <= self.threshold and self.skips <= self.max_skips:
            return False
        self.begin()
        return True


@dataclass(frozen=True)
class Params:
    """The parameters of `plan`."""

    ratio: float
    """The share of the MACs that is pruned."""
    max_skips: int = 3
    """How many calls in a row are reused at most."""
    retention: float = 0.2
    """The share of the calls, from the first on, that are computed in any case."""
    learn: Bisection = Bisection()
    """Names the pictures that the ratios are measured on, and says how the threshold is found."""


def prepares(params: Params) -> tuple[Preparation, ...]:
    """The ratios are measured, and then the threshold is found."""
    calibration = Calibration(params.learn.chosen, "mag_cache", _growth, _ratios)

    def policy(context: PlanContext, threshold: float) -> Policy:
        ratios = tuple(calibration.make(context)["ratios"])
        return Magnitudes(ratios, threshold, params.max_skips, params.retention)

    made_by = {"method": "mag_cache", "max_skips": params.max_skips, "retention": params.retention}
    one = replace(params.learn, pictures=1)  # all get the same schedule
    needs = {"calibration": calibration}
    return calibration, ThresholdSearch(one, params.ratio, RELEASED, policy, made_by, needs)


def plan(context: PlanContext, params: Params) -> Plan:
    """Let the calibrated ratios decide each call."""
    return prepares(params)[-1].plan(context)


def _growth(before: Seen, now: Seen) -> tuple[float]:
    """Return the mean over tokens of how much longer the change by all blocks is than in the call before."""
    lengths = [torch.linalg.norm((seen.left - seen.entered).float(), dim=-1) for seen in (before, now)]
    return (float((lengths[1] / (lengths[0] + 1e-8)).mean()),)


def _ratios(numbers: np.ndarray) -> Mapping[str, Any]:
    return {"ratios": [1.0, *numbers[..., 0].mean(axis=0).tolist()]}
