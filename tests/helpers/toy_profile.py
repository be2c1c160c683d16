"""A profile as somebody else would add it: this file, and one entry in `benchmarks.specs.profiles`."""

from __future__ import annotations

from benchmarks.supply.embedded import Embedded


class Toy(Embedded):
    """The zoo's models with prompts of its own."""

    def prompt_sets(self) -> list[str]:
        return ["toys"]

    def captions(self, prompts: str, model: str) -> list[str]:
        return ["a doll", "a ball", "a kite"]
