"""A diffusion model ready to run: its denoiser, text conditioning, decoder and cost model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from benchmarks.zoo import zoo
from dipgo import CostModel, count_costs, family_of, trace_graph


@dataclass(frozen=True)
class Model:
    """A pipeline of diffusers, taken apart for the harness; weights are frozen and in evaluation mode."""

    name: str
    pipeline: Any

    @cached_property
    def denoiser(self) -> torch.nn.Module:
        return self.pipeline.unet.eval().requires_grad_(False)

    @cached_property
    def costs(self) -> CostModel:
        """Graph and MACs of the family's own blocks, by one traced and one counted forward."""
        family = family_of(self.denoiser)
        probe = family.probe(self.denoiser)
        graph = trace_graph(self.denoiser, family.blocks(self.denoiser), probe)
        return count_costs(self.denoiser, graph, probe)

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

    @torch.no_grad()
    def condition(self, captions: Sequence[str], guidance: float) -> dict[str, torch.Tensor]:
        """The denoiser's text conditioning as `rollout` takes it: unconditional rows first under guidance."""
        positive, negative = self.pipeline.encode_prompt(list(captions), self.device, 1, guidance > 1)
        text = torch.cat([negative, positive]) if guidance > 1 else positive
        return {"encoder_hidden_states": text}

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images [n, 3, h, w], white at 1 and black at 0; not clamped, so that gradients reach every pixel."""
        vae = self.pipeline.vae
        return vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0] / 2 + 0.5


@cache
def load(name: str, device: str = "cpu") -> Model:
    """A model of the zoo in float32. Raises one clear line for missing or tampered weights."""
    pipeline = StableDiffusionPipeline.from_pretrained(zoo.model_path(name), dtype=torch.float32)
    pipeline.vae.eval().requires_grad_(False)
    pipeline.text_encoder.eval().requires_grad_(False)
    return Model(name, pipeline.to(device))
