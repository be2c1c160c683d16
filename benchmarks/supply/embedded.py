"""The embedded profile."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.specs.metrics import EFFLITE0
from benchmarks.specs.prompts import FRESH
from benchmarks.specs.real import RealPictures
from benchmarks.supply import zoo
from benchmarks.supply.pipelines import read
from benchmarks.supply.source import ask_for_data
from dipgo.errors import DipgoError, unknown


class Embedded:
    """The zoo, which lies in the repository."""

    judge_model = None
    JUDGE, REFERENCE, PROMPTS = "emoji-clip", "reference", "prompts"

    def revision(self, row: Mapping[str, Any]) -> str:
        if row.get("model") not in zoo.manifest():
            raise DipgoError(f"run {row.get('id')!r}: {unknown('model', row.get('model'), zoo.manifest())}")
        fresh = [FRESH] if FRESH in row.get("prompts", ()) else []
        return ".".join(map(zoo.revision, (row["model"], self.JUDGE, self.REFERENCE, self.PROMPTS, *fresh)))

    def pipeline(self, model: str, dtype: torch.dtype) -> Any:
        return read(zoo.model_path(model), dtype)

    def models(self) -> list[str]:
        return zoo.models()

    def prompt_sets(self) -> list[str]:
        return zoo.prompt_sets()

    def captions(self, prompts: str, model: str) -> list[str]:
        return [prompt.caption for prompt in zoo.prompts(prompts, model)]

    def judge(self) -> Path:
        return zoo.model_path(self.JUDGE)

    def real_pictures(self, protocol: str, prompts: str) -> RealPictures:
        if protocol != EFFLITE0:
            raise DipgoError(
                f"the zoo's real pictures are not there in {protocol!r} features, only in {EFFLITE0!r}; drop the metric"
            )
        return RealPictures(zoo.model_path(self.REFERENCE) / "real.safetensors", protocol=EFFLITE0)

    def centroids(self, model: str) -> Path | None:
        return zoo.model_path(model) / "centroids.safetensors"

    def assets(self, row: Mapping[str, Any]) -> list[str]:
        return []

    def require(self, row: Mapping[str, Any]) -> None:
        zoo.verify(row["model"])
        ask_for_data(self, row)
