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

    unscored: str
    """Why pictures of this source are not scored; empty where they are."""

    def revision(self, row: Mapping[str, Any]) -> str:
        """What a run rests on besides its settings: digests of its model, prompts, judge and references. `row`:
        the fields of a `RunSpec`."""

    def pipeline(self, model: str, dtype: torch.dtype) -> Any:
        """A diffusers pipeline, its denoiser and text encoders in `dtype`, its decoder in float32; wherever it lies."""

    def captions(self, prompts: str, model: str) -> list[str]:
        """The captions of a prompt set or, of one of classes, their names as the model knows them."""

    judge_model: str | None
    """The name that open_clip gives the judge's architecture, where it has one."""

    def judge(self) -> Path:
        """The folder of the open_clip model that scores pictures."""

    def real_pictures(self, protocol: str, prompts: str) -> RealPictures:
        """Return the real pictures of a prompt set, as a protocol of `benchmarks.quality.features` sees them."""

    def centroids(self, model: str) -> Path | None:
        """The file of class centroids of a model that draws classes; None where classes are not scored."""

    def assets(self, row: Mapping[str, Any]) -> list[str]:
        """The names of what a run needs besides this repository and its packages."""

    def require(self, row: Mapping[str, Any]) -> None:
        """Raise for the first thing that a run needs and that is not there, before anything is begun."""


def ask_for_data(own: Source, row: Mapping[str, Any]) -> None:
    """Raise where a run's captions or real pictures are missing."""
    for prompts in row["prompts"]:
        own.captions(prompts, row["model"])
        for metric in scored(row["metrics"]):
            if metric.protocol:
                own.real_pictures(metric.protocol, prompts)
