"""The embedded profile: the zoo, which lies in the repository."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.quality.features import EFFLITE0
from benchmarks.quality.reference import Reference
from benchmarks.supply import zoo
from benchmarks.supply.pipelines import read
from benchmarks.supply.source import ask_for_data
from dipgo.errors import DipgoError, unknown


class Embedded:
    """The zoo, which lies in the repository."""

    unscored, judge_model = "", None
    JUDGE, REFERENCE, PROMPTS = "emoji-clip", "reference", "prompts"

    def revision(self, row: Mapping[str, Any]) -> str:
        if row.get("model") not in zoo.manifest():
            raise DipgoError(f"run {row.get('id')!r}: {unknown('model', row.get('model'), zoo.manifest())}")
        return ".".join(map(zoo.revision, (row["model"], self.JUDGE, self.REFERENCE, self.PROMPTS)))

    def pipeline(self, model: str, dtype: torch.dtype) -> Any:
        return read(zoo.model_path(model), dtype)

    def captions(self, prompts: str, model: str) -> list[str]:
        return [prompt.caption for prompt in zoo.prompts(prompts)]

    def judge(self) -> Path:
        return zoo.model_path(self.JUDGE)

    def reference(self, metric: str, prompts: str) -> Reference:
        if not metric.endswith(EFFLITE0.name):
            raise DipgoError(f"{metric}: of the zoo's real pictures there are only EfficientNet-Lite0's features")
        return Reference(zoo.model_path(self.REFERENCE) / "real.safetensors")

    def centroids(self, model: str) -> Path | None:
        return zoo.model_path(model) / "centroids.safetensors"

    def assets(self, row: Mapping[str, Any]) -> list[str]:
        return []

    def require(self, row: Mapping[str, Any]) -> None:
        zoo.verify(row["model"])
        ask_for_data(self, row)
