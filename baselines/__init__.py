"""Methods, one file each, found by name. Listing the names loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from baselines.params import read
from dipgo.registry import Registry

if TYPE_CHECKING:
    from baselines.plan import Plan, PlanContext
    from baselines.preparation import Preparation

METHODS: Registry[str] = Registry(
    "method",
    {
        "dense": "baselines.dense",
        "bk_sdm": "baselines.bk_sdm",
        "step_skip": "baselines.step_skip",
        "step_search": "baselines.step_search",
        "deepcache": "baselines.deepcache",
        "taylorseer": "baselines.taylorseer",
        "smoothcache": "baselines.smoothcache",
        "dipgo": "baselines.learned_schedule",
        "random_scores": "baselines.random_scores",
        "stored_schedule": "baselines.stored_schedule",
        "random_search": "baselines.random_search",
        "genetic_search": "baselines.genetic_search",
        "kept_timesteps": "baselines.kept_timesteps",
        "learned_forecast": "baselines.learned_forecast",
        "few_steps": "baselines.few_steps",
        "tuned_steps": "baselines.tuned_steps",
        "gits_steps": "baselines.gits_steps",
        "learned_steps": "baselines.learned_steps",
        "first_block_cache": "baselines.first_block_cache",
        "db_cache": "baselines.db_cache",
        "tea_cache": "baselines.tea_cache",
        "mag_cache": "baselines.mag_cache",
    },
)
"""The module of each method. It holds `Params`, a dataclass of the method's parameters; `plan(context, params)`; where
the method makes something beforehand, `prepares(params)`, which lists that; and `EXAMPLES`, params that are valid."""


@dataclass(frozen=True)
class Method:
    """A method, loaded."""

    name: str
    module: ModuleType

    def read(self, params: Mapping[str, Any]) -> Any:
        """Return a run's params as the method's own `Params`. Raises `DipgoError` for a name or value that it does not
        take."""
        return read(self.module.Params, params, self.name)

    def prepares(self, params: Mapping[str, Any]) -> tuple[Preparation, ...]:
        """Return what the method makes beforehand for a run of these params; first what the others need."""
        listed = getattr(self.module, "prepares", None)
        return tuple(listed(self.read(params))) if listed else ()

    def plan(self, context: PlanContext) -> Plan:
        """Return how to sample a run. Raises `DipgoError` for params, a denoiser or a sampler that do not suit."""
        return self.module.plan(context, self.read(context.params))


def method(name: str) -> Method:
    """Load a method; raises `DipgoError` with the nearest names for an unknown one."""
    return Method(name, import_module(METHODS[name]))


def __getattr__(name: str) -> Any:
    """Load the nouns of `baselines.plan`, and torch with them, when they are first used (PEP 562)."""
    if name not in ("Fitness", "Plan", "PlanContext", "Studio"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("baselines.plan"), name)


__all__ = ["METHODS", "Fitness", "Method", "Plan", "PlanContext", "Studio", "method"]  # noqa: F822
