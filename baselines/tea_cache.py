"""TeaCache (https://arxiv.org/abs/2411.19108): all blocks are reused until the changes of the first block's modulated
input, rescaled by a fitted polynomial, add up to a threshold.

The look at that input takes the first block's normalization, which is not charged in the MACs: at most 0.2 % of a
dense call in the suite's models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from baselines.calibration import Calibration, Seen, moved
from baselines.plan import Plan, PlanContext
from baselines.preparation import Preparation
from baselines.threshold import Bisection, ThresholdSearch
from dipgo import Policy, Question
from dipgo.errors import DipgoError

RELEASED = 0.25  # the lowest threshold that the authors give for FLUX
DEGREE = 4  # of the authors' polynomials
EXAMPLES = ({"ratio": 0.4, "learn": {"pictures": 2, "rounds": 2}},)


@dataclass
class ModulatedInput(Policy):
    """Computes a call once the rescaled changes since the last computed one reach a threshold, and the first and the
    last call in any case."""

    polynomial: tuple[float, ...]
    """Turns the relative change of the modulated input into that of the output; coefficients, highest power first."""
    threshold: float
    calls: int
    """How many calls a run has."""

    def begin(self) -> None:
        self.last: torch.Tensor | None = None
        self.total = 0.0

    def computes(self, question: Question) -> bool:
        now = attended(question.block, question.args, question.kwargs)
        if self.last is not None:
            self.total += float(np.polyval(self.polynomial, moved(self.last, now)))
        self.last = now
        if 0 < question.call < self.calls - 1 and self.total < self.threshold:
            return False
        self.total = 0.0
        return True


class _Reached(Exception):
    """Carries what a block's attention was about to take in."""


def attended(block: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> torch.Tensor:
    """Return what the self-attention of a transformer's block takes in: the stream, normalized and modulated by the
    timestep, [rows, tokens, width]. The block runs that far and no further.

    Raises `DipgoError` where the block has no module `attn1`.
    """

    def stop(attention: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        raise _Reached(args[0] if args else kwargs["hidden_states"])

    if not hasattr(block, "attn1"):
        raise DipgoError(f"TeaCache looks at what a block's attn1 takes in, but {type(block).__name__} has none")
    handle = block.attn1.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        block.forward(*args, **kwargs)
    except _Reached as reached:
        return reached.args[0]
    finally:
        handle.remove()
    raise DipgoError(f"{type(block).__name__} did not call its attn1")


@dataclass(frozen=True)
class Params:
    """The parameters of `plan`."""

    ratio: float
    """The share of the MACs that is pruned, as a mean over pictures."""
    learn: Bisection = Bisection()
    """Names the pictures that the polynomial is fitted to, and says how the threshold is found."""


def prepares(params: Params) -> tuple[Preparation, ...]:
    """The polynomial is fitted, and then the threshold is found."""
    calibration = Fit(params.learn.chosen, "tea_cache", _changes, _polynomial)

    def policy(context: PlanContext, threshold: float) -> Policy:
        return ModulatedInput(tuple(calibration.make(context)["polynomial"]), threshold, context.sampler.calls)

    needs, made_by = {"calibration": calibration}, {"method": "tea_cache"}
    return calibration, ThresholdSearch(params.learn, params.ratio, RELEASED, policy, made_by, needs)


def plan(context: PlanContext, params: Params) -> Plan:
    """Let the first block's modulated input decide each call of each picture."""
    return prepares(params)[-1].plan(context)


class Fit(Calibration):
    """A calibration whose fit a record tells."""

    def account(self, kept: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"polynomial": {name: kept[name] for name in ("polynomial", "r2")}}


def _changes(before: Seen, now: Seen) -> tuple[float, float]:
    """Return the relative changes of the modulated input and of the output."""
    looks = [attended(seen.block, seen.args, seen.kwargs) for seen in (before, now)]
    return moved(*looks), moved(before.output, now.output)


def _polynomial(numbers: np.ndarray) -> Mapping[str, Any]:
    """Return the polynomial of least squares, and the share of the outputs' variance that it explains."""
    inputs, outputs = numbers.reshape(-1, 2).T
    polynomial = np.polyfit(inputs, outputs, DEGREE)
    left = outputs - np.polyval(polynomial, inputs)
    return {"polynomial": polynomial.tolist(), "r2": float(1 - left.var() / outputs.var())}
