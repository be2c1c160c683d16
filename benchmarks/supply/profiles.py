"""The sources of the profiles."""

from __future__ import annotations

from functools import cache
from pkgutil import resolve_name

from benchmarks.specs.profiles import PROFILES
from benchmarks.supply.source import Source


@cache
def source(profile: str) -> Source:
    """Return what supplies the models and prompts of a profile. Its module is imported here and not before.

    Raises `DipgoError` for an unknown profile.
    """
    return resolve_name(PROFILES[profile].source)()
