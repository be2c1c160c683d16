"""The profiles: where models, prompts and judges come from, and what follows from that. No torch.

A new profile is one file in `benchmarks/supply` and its entry here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.specs.files import merge
from dipgo.registry import Registry


@dataclass(frozen=True)
class Profile:
    """The traits of one profile."""

    about: str
    """What its models are, in a few words."""
    source: str
    """"module:class" of what supplies its models and prompts: a `benchmarks.supply.source.Source`."""
    overlay: str = ""
    """The NAME of the `[profile.NAME]` tables of suites and tables that it takes; empty where it takes none."""
    folder: str = ""
    """Its subfolder in the folders of records and of rendered tables; empty for these folders themselves."""
    paper_models: bool = False
    """Whether its models are the paper's own, at full size. What they need is then counted from their shapes, without
    weights, and tables print the paper's values beside the measured ones."""
    unscored: str = ""
    """Why its pictures are not scored; empty where they are."""
    note: str = ""
    """What a reader of its tables must know first, as a sentence of markdown."""


PROFILES: Registry[Profile] = Registry(
    "profile",
    {
        "embedded": Profile("the zoo's models, which lie in the repository", "benchmarks.supply.embedded:Embedded"),
        "paper": Profile(
            "the paper's models, as `python -m benchmarks fetch` downloads them",
            "benchmarks.supply.paper:Paper",
            overlay="paper",
            folder="paper",
            paper_models=True,
        ),
        "random-weights": Profile(
            "the paper's models without their weights and data: only time and memory are measured",
            "benchmarks.supply.unscored:RandomWeights",
            overlay="paper",
            folder="random-weights",
            paper_models=True,
            unscored="random weights: their pictures are noise",
            note="**The weights are random.** The models have the paper's shapes and their pictures are noise, which "
            "nobody scores: what stands here are MACs and seconds, and no quality.",
        ),
    },
)
DEFAULT = "embedded"
"""The profile of commands that name none. Its tables are rendered whether or not they have records."""


def profiled(data: Mapping[str, Any], profile: str) -> dict[str, Any]:
    """Return the tables of a file for a profile: those outside `[profile]`, with those of its overlay on top."""
    overlay = data.get("profile", {}).get(PROFILES[profile].overlay, {})
    return merge({key: value for key, value in data.items() if key != "profile"}, overlay)


def place(profile: str, base: Path) -> Path:
    """Return the folder of a profile's files in a folder of records or of rendered tables."""
    return base / PROFILES[profile].folder
