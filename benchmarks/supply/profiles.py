"""The profiles by name."""

from __future__ import annotations

from benchmarks.specs.run import PROFILES
from benchmarks.supply.embedded import Embedded
from benchmarks.supply.paper import Paper
from benchmarks.supply.source import Source
from benchmarks.supply.unscored import RandomWeights
from dipgo.errors import unknown

SOURCES: dict[str, Source] = dict(zip(PROFILES, (Embedded(), Paper(), RandomWeights()), strict=True))


def source(profile: str) -> Source:
    """A profile's source; raises `DipgoError` for an unknown one."""
    if profile not in SOURCES:
        raise unknown("profile", profile, SOURCES)
    return SOURCES[profile]
