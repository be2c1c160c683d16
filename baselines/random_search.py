"""Random search (Table 6): the best of many random schedules at the asked ratio."""

from __future__ import annotations

import numpy as np

from baselines.plan import Plan, PlanContext
from baselines.search import begin, end

SETTINGS = {"evaluations": 1000, "population": 50, "seed": 0}


def plan(context: PlanContext) -> Plan:
    """Parameters: `ratio` of the MACs to prune; `fitness`; `search`, whose settings and defaults are `SETTINGS`.

    `population` schedules are drawn and evaluated at a time.
    """
    search, settings = begin(context, SETTINGS)
    rng = np.random.default_rng(settings["seed"])
    while search.left:
        search.evaluate([search.space.random(rng) for _ in range(min(settings["population"], search.left))])
    return end(context, search)
