"""The random-weights profile."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine.shards import shards
from benchmarks.specs.profiles import PROFILES
from benchmarks.specs.real import RealPictures
from benchmarks.supply import datasets, random_weights
from benchmarks.supply.paper import Paper
from benchmarks.supply.paper_configs import PAPER_MODELS, paper_model
from benchmarks.supply.pipelines import sliced
from dipgo.errors import DipgoError

UNSCORED = PROFILES["random-weights"].unscored


class RandomWeights:
    """The paper's own models at full size, with random weights: for time and memory, before anything is fetched."""

    judge_model = None

    def revision(self, row: Mapping[str, Any]) -> str:
        paper_model(row.get("model"))
        return "random"

    def pipeline(self, model: str, dtype: torch.dtype) -> Any:
        return sliced(random_weights.pipeline(model, dtype, device=shards().device))

    def models(self) -> list[str]:
        return [*PAPER_MODELS]

    def prompt_sets(self) -> list[str]:
        return [*datasets.LENGTHS]

    def captions(self, prompts: str, model: str) -> list[str]:
        if prompts == Paper.CLASSES:
            return random_weights.CLASSES * datasets.PICTURES_OF_A_CLASS
        return [f"picture {index} of {prompts}" for index in range(datasets.LENGTHS[prompts])]

    def judge(self) -> Path:
        raise DipgoError(UNSCORED)

    def real_pictures(self, protocol: str, prompts: str) -> RealPictures:
        raise DipgoError(UNSCORED)

    def centroids(self, model: str) -> Path | None:
        return None

    def assets(self, row: Mapping[str, Any]) -> list[str]:
        return []

    def require(self, row: Mapping[str, Any]) -> None:
        paper_model(row["model"])
