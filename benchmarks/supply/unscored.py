"""The random-weights profile: the paper's models at full size, without their weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine.shards import shards
from benchmarks.specs.real import RealPictures
from benchmarks.supply import datasets, random_weights
from benchmarks.supply.paper import Paper
from benchmarks.supply.paper_configs import paper_model
from benchmarks.supply.pipelines import sliced
from dipgo.errors import DipgoError


class RandomWeights:
    """The paper's own models at full size with random weights: for time and memory, before anything is fetched."""

    unscored, judge_model = "random weights: their pictures are noise", None

    def revision(self, row: Mapping[str, Any]) -> str:
        paper_model(row.get("model"))
        return "random"

    def pipeline(self, model: str, dtype: torch.dtype) -> Any:
        return sliced(random_weights.pipeline(model, dtype, device=shards().device))

    def captions(self, prompts: str, model: str) -> list[str]:
        if prompts == Paper.CLASSES:
            return random_weights.CLASSES * datasets.PICTURES_OF_A_CLASS
        return [f"picture {index} of {prompts}" for index in range(datasets.LENGTHS[prompts])]

    def judge(self) -> Path:
        raise DipgoError(self.unscored)

    def real_pictures(self, protocol: str, prompts: str) -> RealPictures:
        raise DipgoError(self.unscored)

    def centroids(self, model: str) -> Path | None:
        return None

    def assets(self, row: Mapping[str, Any]) -> list[str]:
        return []

    def require(self, row: Mapping[str, Any]) -> None:
        paper_model(row["model"])
