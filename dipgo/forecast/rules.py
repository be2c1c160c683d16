"""Reuse rules: the coefficients by which a reused site combines its last K computed values, newest first.

Holding, extrapolating and learning (`dipgo.learning`) are one thing. A rule is a function of what is computed, so
that the gates may change under it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from dipgo.errors import DipgoError
from dipgo.graph import BlockGraph
from dipgo.schedule import Schedule

Rule = Callable[[np.ndarray], np.ndarray]
"""From `computed`, bool [calls, sites] with row 0 true, to coefficients, float [calls, sites, K]."""


def ruled(rule: Rule, graph: BlockGraph, schedule: Schedule) -> Schedule:
    """The schedule with the rule's coefficients for what it really computes, the cascade included."""
    return replace(schedule, coefficients=rule(graph.execute(schedule).computed))


@dataclass(frozen=True)
class Forecast:
    """Polynomial extrapolation of an order from the calls that were computed: 0 holds, 1 is linear, 2 quadratic.

    `times` [calls] is the variable in which the site's values are taken for a polynomial. Of values of one time only
    the newest counts, and as long as there are too few the order is lower.
    """

    times: np.ndarray
    order: int

    def __post_init__(self) -> None:
        if self.order not in (0, 1, 2):
            raise DipgoError(f"a forecast's order is {self.order}; it must be 0, 1 or 2")

    def __call__(self, computed: np.ndarray) -> np.ndarray:
        coefficients = np.zeros((*computed.shape, self.order + 1))
        for call, site in product(range(1, computed.shape[0]), range(computed.shape[1])):
            last = np.flatnonzero(computed[:call, site])[::-1][: self.order + 1]
            known = self.times[last]
            distinct = [k for k in range(len(last)) if known[k] not in known[:k]]
            for k in distinct:
                others = known[[j for j in distinct if j != k]]
                coefficients[call, site, k] = np.prod((self.times[call] - others) / (known[k] - others))
        return coefficients
