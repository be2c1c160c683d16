"""Reuse rules: the coefficients by which a reused site combines its last K computed values, newest first.

Holding, extrapolating and learning are one thing: all give coefficients. A rule is a function of what is computed, so
that the gates may change under it. `RULES` has the rules by name, and a new one is one entry there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from math import factorial

import numpy as np

from dipgo.errors import DipgoError
from dipgo.graph import BlockGraph
from dipgo.registry import Registry
from dipgo.schedule import Schedule

Rule = Callable[[np.ndarray], np.ndarray]
"""From `computed`, bool [calls, sites] with row 0 true, to coefficients, float [calls, sites, K]."""


def ruled(rule: Rule, graph: BlockGraph, schedule: Schedule) -> Schedule:
    """Return the schedule with the rule's coefficients for what it really computes, the cascade included."""
    return replace(schedule, coefficients=rule(graph.execute(schedule).computed))


@dataclass(frozen=True)
class Forecast:
    """Polynomial extrapolation from the calls that were computed."""

    times: np.ndarray
    """Float [calls]: the variable that a site's values are a polynomial of, such as `Sampler.noise_ratios`."""
    order: int
    """The polynomial's degree: 0 holds, 1 is linear, 2 quadratic. It is lower as long as too few values are known; of
    several values of one time only the newest counts."""

    def __post_init__(self) -> None:
        if self.order not in (0, 1, 2):
            raise DipgoError(f"a forecast's order is {self.order}; it must be 0, 1 or 2")
        odd = np.flatnonzero(~np.isfinite(self.times))
        if self.order and len(odd):
            raise DipgoError(
                f"a forecast needs finite times, but that of call {odd[0]} is {self.times[odd[0]]}: where a noise "
                "schedule begins at zero SNR, the noise ratio has no bound; take order 0, which holds, or the "
                "sampler's timesteps as times"
            )

    def __call__(self, computed: np.ndarray) -> np.ndarray:
        coefficients = np.zeros((*computed.shape, self.order + 1))
        for call, site in product(range(1, computed.shape[0]), range(computed.shape[1])):
            last = np.flatnonzero(computed[:call, site])[::-1][: self.order + 1]
            coefficients[call, site] = self.weights(call, last)
        return coefficients

    def weights(self, call: int, last: np.ndarray) -> np.ndarray:
        """Return float [K]: the coefficients of a value in a call, given the last calls that computed it, newest first
        (int, K of them at most)."""
        weights, known = np.zeros(self.order + 1), self.times[last]
        distinct = [k for k in range(len(last)) if known[k] not in known[:k]]
        for k in distinct:
            others = known[[j for j in distinct if j != k]]
            weights[k] = np.prod((self.times[call] - others) / (known[k] - others))
        return weights


@dataclass(frozen=True)
class Taylor:
    """The Taylor series of a site's values in the number of calls since it was last computed.

    Its derivatives are backward differences, each divided by the gap between the last two computed calls. So a
    forecast is a combination of the last `order` + 1 values, or of fewer as long as fewer are known.
    """

    order: int

    def __call__(self, computed: np.ndarray) -> np.ndarray:
        coefficients = np.zeros((*computed.shape, self.order + 1))
        for site, row in enumerate(computed.T):
            last, known = 0, 0
            derivatives = np.zeros((self.order + 1,) * 2)  # each as a combination of the last values, newest first
            for call, runs in enumerate(row):
                if runs:
                    before = np.roll(derivatives, 1, axis=1)
                    derivatives = np.zeros_like(derivatives)
                    derivatives[0, 0] = 1
                    for j in range(min(self.order, known)):
                        derivatives[j + 1] = (derivatives[j] - before[j]) / (call - last)
                    last, known = call, known + 1
                else:
                    powers = [(call - last) ** j / factorial(j) for j in range(self.order + 1)]
                    coefficients[call, site] = powers @ derivatives
        return coefficients


@dataclass(frozen=True)
class ReuseRule:
    """How reused values are made, as a name in `RULES` says it."""

    start: Callable[[np.ndarray], Rule]
    """Makes the rule of a sampler, given the time of each call (see `Forecast.times`)."""
    learned: bool = False
    """Whether `learn_forecast` then fits the coefficients to pictures."""


RULES: Registry[ReuseRule] = Registry(
    "reuse rule",
    {
        "hold": ReuseRule(partial(Forecast, order=0)),
        "linear": ReuseRule(partial(Forecast, order=1)),
        "quadratic": ReuseRule(partial(Forecast, order=2)),
        "learned": ReuseRule(partial(Forecast, order=1), learned=True),
    },
)
"""The paper's rule is "hold"; "learned" is Ours+."""
