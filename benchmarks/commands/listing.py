"""The names that a suite or a command line may hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from baselines import METHODS
from benchmarks import ROOT
from benchmarks.specs.metrics import METRICS
from benchmarks.specs.profiles import PROFILES
from benchmarks.specs.suite import read_suite


def names(kind: str) -> list[str]:
    """Return the names of a kind: one of `KINDS`. What depends on a suite or a profile has its name in front."""
    return KINDS[kind]()


def _rows() -> list[str]:
    suites = sorted((ROOT / "benchmarks" / "suites").glob("*.toml"))
    return [f"{path.stem} {name}" for path in suites for name in read_suite(path)]


def _of_profiles(kind: str) -> list[str]:
    from benchmarks.supply.profiles import source  # it imports torch

    return [f"{name} {item}" for name in PROFILES for item in getattr(source(name), kind)()]


KINDS: Mapping[str, Callable[[], list[str]]] = {
    "rows": _rows,
    "methods": lambda: [*METHODS],
    "metrics": lambda: [*dict.fromkeys(metric.asked_as for metric in METRICS.values() if metric.asked_as)],
    "models": lambda: _of_profiles("models"),
    "profiles": lambda: [f"{name}: {profile.about}" for name, profile in PROFILES.items()],
    "prompts": lambda: _of_profiles("prompt_sets"),
}
