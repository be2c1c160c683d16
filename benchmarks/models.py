"""A diffusion model ready to run: its denoiser, conditioning, decoder and cost model. What differs between families
is in their records, not here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline

from benchmarks.spec import BenchmarkError, unknown
from benchmarks.zoo import zoo
from dipgo import CostModel, Family, branch_guidance, denoiser_of, family_of

INDEX = "model_index.json"


@dataclass(frozen=True, eq=False)
class Model:
    """A pipeline of diffusers, taken apart for the harness; weights are frozen and in evaluation mode."""

    name: str
    pipeline: Any

    @cached_property
    def denoiser(self) -> torch.nn.Module:
        return denoiser_of(self.pipeline)

    @cached_property
    def family(self) -> Family:
        return family_of(self.denoiser)

    @property
    def costs(self) -> CostModel:
        """Graph and MACs of the family's own blocks (sites of unit "output")."""
        return self.costs_of("output")

    def costs_of(self, unit: str) -> CostModel:
        """Graph and MACs of the family's sites of a unit."""
        return self.family.costs(self.denoiser, self.family.sites(self.denoiser, unit))

    @property
    def scheduler_config(self) -> dict[str, Any]:
        return dict(self.pipeline.scheduler.config)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        size = self.denoiser.config.sample_size
        return self.denoiser.config.in_channels, size, size

    @property
    def device(self) -> torch.device:
        return self.denoiser.device

    def branch_guidance(self, guidance: float) -> float:
        """The scale for the sampling loop: 1, so one branch, where the denoiser itself is told the scale."""
        return branch_guidance(self.denoiser, guidance)

    @torch.no_grad()
    def condition(self, captions: Sequence[str], guidance: float) -> Mapping[str, Any]:
        """The denoiser's conditioning as `rollout` takes it, for captions or, where it draws classes, their names."""
        return self.family.condition(self.pipeline, captions, guidance)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images [n, 3, h, w], white at 1 and black at 0; not clamped, so that gradients reach every pixel."""
        vae = self.pipeline.vae
        return vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0] / 2 + 0.5


@cache
def load(name: str, device: str = "cpu") -> Model:
    """A model of the zoo in float32. Raises one clear line for missing or tampered weights."""
    return read(zoo.model_path(name), name, device)


def read(folder: Path, name: str, device: str = "cpu") -> Model:
    """The pipeline in a folder of diffusers' own format, in float32; its model_index.json names its class.

    Raises `BenchmarkError` where the folder is no pipeline, `DipgoError` where no family describes its denoiser.
    """
    try:
        kind = str(json.loads((folder / INDEX).read_text(encoding="utf-8"))["_class_name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(f"{folder} is no diffusers pipeline: no class in its {INDEX}") from error
    if not hasattr(diffusers, kind):
        pipelines = [known for known in dir(diffusers) if known.endswith("Pipeline")]
        raise BenchmarkError(f"{folder / INDEX}: {unknown('pipeline class', kind, pipelines)}")
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()  # it complains of parts of another class than published
    pipeline = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    model = Model(name, pipeline.to(device))
    model.family  # noqa: B018  (a denoiser that no family describes is refused here)
    return model
