"""One file a method; each offers `plan(context) -> Plan`. The registry finds them by name."""

from __future__ import annotations

from collections.abc import Callable

from baselines import (
    bk_sdm,
    deepcache,
    dense,
    genetic_search,
    kept_timesteps,
    learned_forecast,
    random_scores,
    random_search,
    step_search,
    step_skip,
    stored_schedule,
)
from baselines import learned_schedule as dipgo
from baselines.plan import Fitness, Plan, PlanContext
from dipgo.errors import unknown

METHODS: dict[str, Callable[[PlanContext], Plan]] = {
    "dense": dense.plan,
    "bk_sdm": bk_sdm.plan,
    "step_skip": step_skip.plan,
    "step_search": step_search.plan,
    "deepcache": deepcache.plan,
    "dipgo": dipgo.plan,
    "random_scores": random_scores.plan,
    "stored_schedule": stored_schedule.plan,
    "random_search": random_search.plan,
    "genetic_search": genetic_search.plan,
    "kept_timesteps": kept_timesteps.plan,
    "learned_forecast": learned_forecast.plan,
}


def method(name: str) -> Callable[[PlanContext], Plan]:
    """The planner of a method; raises `DipgoError` with the nearest names for an unknown one."""
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]


__all__ = ["METHODS", "Fitness", "Plan", "PlanContext", "method"]
