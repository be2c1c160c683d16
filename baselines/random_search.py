"""Random search (Table 6): the best of many random schedules at the asked ratio."""

from __future__ import annotations

import numpy as np

from baselines.plan import Plan, PlanContext
from baselines.preparation import Preparation
from baselines.search import RatioParams, Search, Settings, ratio_search

Params = RatioParams
EXAMPLES = ({"ratio": 0.5, "search": {"evaluations": 4, "population": 2}, "fitness": {"images": 1}},)


def prepares(params: Params) -> tuple[Preparation, ...]:
    """Schedules are drawn and evaluated, `population` at a time."""
    return (ratio_search("random_search", Settings, params, _run),)


def plan(context: PlanContext, params: Params) -> Plan:
    """Follow the best schedule of the search."""
    return prepares(params)[0].make(context)


def _run(search: Search, settings: Settings) -> None:
    rng = np.random.default_rng(settings.seed)
    while search.left:
        search.evaluate([search.space.random(rng) for _ in range(min(settings.population, search.left))])
