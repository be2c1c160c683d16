"""Algorithm 1: one set of scores, a schedule at any pruned ratio."""

from __future__ import annotations

import numpy as np

from dipgo.costs import CostModel
from dipgo.errors import DipgoError, UnreachableRatio
from dipgo.rules import Rule, ruled
from dipgo.schedule import Schedule

TOLERANCE = 0.0125
SMALLEST_INTERVAL = 1e-12  # where the bisection ends: two float32 scores cannot be told apart


def select_schedule(
    scores: np.ndarray, ratio: float, costs: CostModel, rule: Rule | None = None, *, tolerance: float = TOLERANCE
) -> Schedule:
    """Return the schedule of Algorithm 1: bisect a threshold c in [0, 1] until the pruned ratio is near `ratio`.

    scores: the importance of each block, float [calls, sites]; blocks scored below c are pruned.
    ratio: the share of MACs to save in the paper's convention, the cascade included.
    costs: MACs and graph of the sites.
    rule: what pruned blocks give; by default they hold.
    tolerance: how near to `ratio` is near enough.

    Raises `DipgoError` for a ratio outside (0, 1) and `UnreachableRatio` when no threshold gets there.
    """
    if not 0 < ratio < 1:
        raise DipgoError(f"pruned ratio is {ratio}; it must lie strictly between 0 and 1")
    if not np.isfinite(scores).all():
        raise DipgoError("scores hold NaN or infinity: the pruner's training diverged; lower its learning rate")
    low, high = 0.0, 1.0
    seen = set()
    while high - low > SMALLEST_INTERVAL:
        threshold = (low + high) / 2
        schedule = at_threshold(scores, threshold, costs)
        schedule = schedule if rule is None else ruled(rule, costs.graph, schedule)
        pruned = costs.pruned_ratio(schedule)
        seen.add(round(pruned, 4))
        if abs(pruned - ratio) < tolerance:
            return schedule
        low, high = (threshold, high) if pruned < ratio else (low, threshold)
    nearest = min(seen, key=lambda reached: abs(reached - ratio))
    raise UnreachableRatio(
        f"no threshold on these scores prunes {ratio} of the MACs within {tolerance}; the nearest found is "
        f"{nearest}. Ask for that, or train longer so that the scores spread"
    )


def at_threshold(scores: np.ndarray, threshold: float, costs: CostModel) -> Schedule:
    """Return the schedule that prunes every block scored below `threshold`; the first call is kept whole."""
    reuse = scores < threshold
    reuse[0] = False
    return Schedule(costs.graph.sites, reuse)
