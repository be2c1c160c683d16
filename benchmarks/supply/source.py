"""What the harness asks of a profile."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from benchmarks.specs.metrics import scored
from benchmarks.specs.real import RealPictures


class Source(Protocol):
    """What the harness asks of a profile. Every answer raises a `DipgoError` for what is not there."""

    judge_model: str | None
    """The name that open_clip gives the judge's architecture; None where it has none."""

    def models(self) -> list[str]:
        """Return the names of the models."""

    def prompt_sets(self) -> list[str]:
        """Return the names of the prompt sets."""

    def revision(self, row: Mapping[str, Any]) -> str:
        """Return the digests of all that a run rests on besides its settings: its model, prompts, judge and real
        pictures. `row` holds the fields of a `RunSpec`."""

    def pipeline(self, model: str, dtype: torch.dtype) -> Any:
        """Return a diffusers pipeline on any device. Its denoiser and text encoders are in `dtype`, its decoder is in
        float32."""

    def captions(self, prompts: str, model: str) -> list[str]:
        """Return the captions of a prompt set. For a set of classes these are their names as the model knows them."""

    def judge(self) -> Path:
        """Return the folder of the open_clip model that scores pictures."""

    def real_pictures(self, protocol: str, prompts: str) -> RealPictures:
        """Return the real pictures of a prompt set, as a protocol of `benchmarks.quality.features` sees them."""

    def centroids(self, model: str) -> Path | None:
        """Return the file of class centroids of a model that draws classes; None where classes are not scored."""

    def assets(self, row: Mapping[str, Any]) -> list[str]:
        """Return the names of the assets that a run needs."""

    def require(self, row: Mapping[str, Any]) -> None:
        """Raise for the first thing that a run needs and that is not there, before anything is begun."""


def ask_for_data(source: Source, row: Mapping[str, Any]) -> None:
    """Raise where a run's captions or real pictures are missing."""
    for prompts in row["prompts"]:
        source.captions(prompts, row["model"])
        for metric in scored(row["metrics"]):
            if metric.protocol:
                source.real_pictures(metric.protocol, prompts)
