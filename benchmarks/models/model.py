"""Loads a diffusion model, ready to run: its denoiser, conditioning, decoder and cost model.

What differs between families of models is in their records in `dipgo.families`.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch

from benchmarks.machine.shards import shards
from benchmarks.specs import run as specs
from benchmarks.specs.run import RunSpec, Setting
from benchmarks.supply.profiles import source
from dipgo import CostModel, Diffusion, Family, Inputs, Sampler, branch_guidance, denoiser_of, family_of, initial_noise
from dipgo.errors import unknown

DTYPES = {name: getattr(torch, name) for name in specs.DTYPES}


@dataclass(frozen=True, eq=False)
class Model:
    """A pipeline of diffusers, as the harness uses it. Its weights are frozen and in evaluation mode."""

    name: str
    pipeline: Any

    @cached_property
    def denoiser(self) -> torch.nn.Module:
        return denoiser_of(self.pipeline)

    @cached_property
    def family(self) -> Family:
        return family_of(self.denoiser)

    @cached_property
    def probe(self) -> dict[str, Any]:
        """The inputs of one call at batch 1, with as many text tokens as the pipeline passes."""
        return self.family.probe_of(self.pipeline)

    @property
    def costs(self) -> CostModel:
        """Graph and MACs of the family's blocks (sites of unit "output")."""
        return self.costs_of("output")

    def costs_of(self, unit: str) -> CostModel:
        """Return graph and MACs of the family's sites of a unit."""
        return self.costs_at(self.family.sites(self.denoiser, unit))

    def costs_at(self, sites: Sequence[str]) -> CostModel:
        """Return graph and MACs of these sites."""
        return self.family.costs(self.denoiser, sites, self.probe)

    @property
    def scheduler_config(self) -> dict[str, Any]:
        return dict(self.pipeline.scheduler.config)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """The channels, height and width of a latent."""
        size = self.denoiser.config.sample_size
        return self.denoiser.config.in_channels, size, size

    def sampler(self, scheduler: str, steps: int) -> Sampler:
        """Return the sampler of a name with the model's own noise schedule."""
        return Sampler(scheduler, self.scheduler_config, steps)

    def diffusion(self, sampler: Sampler, guidance: float) -> Diffusion:
        """Return the denoiser with a sampler and the guidance scale as the sampling loop takes it."""
        return Diffusion(self.denoiser, sampler, self.branch_guidance(guidance))

    def inputs_of(self, captions: Sequence[str], seeds: Sequence[int], guidance: float) -> Inputs:
        """Return noise and conditioning of one picture for each caption and seed, on the model's device."""
        noise = initial_noise(seeds, self.latent_shape).to(self.device)
        return Inputs(noise, self.condition(captions, guidance), seeds)

    @property
    def device(self) -> torch.device:
        return self.denoiser.device

    def branch_guidance(self, guidance: float) -> float:
        """Return the scale for the sampling loop. It is 1 where the denoiser itself is told the guidance scale."""
        return branch_guidance(self.denoiser, guidance)

    def branches(self, guidance: float) -> int:
        """Return the number of guidance branches of a call."""
        return 2 if self.branch_guidance(guidance) > 1 else 1

    @torch.no_grad()
    def condition(self, captions: Sequence[str], guidance: float) -> Mapping[str, Any]:
        """Return the denoiser's conditioning as `rollout` takes it, for captions or, where it draws classes, for the
        names of classes."""
        return self.family.condition(self.pipeline, captions, guidance)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return images [n, 3, h, w], white at 1 and black at 0; not clamped, so that gradients reach every pixel."""
        vae = self.pipeline.vae
        return vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0] / 2 + 0.5


def load(setting: RunSpec | Setting) -> Model:
    """Return a setting's model in its dtype on this process's device; a process loads it once.

    Raises `DipgoError` for weights that are missing or tampered with, and where no family describes the denoiser.
    """
    return _load(setting.profile, setting.model, setting.dtype)


def forget() -> None:
    """Drop the models that `load` keeps, so that another model finds the memory free."""
    _load.cache_clear()
    gc.collect()
    torch.cuda.empty_cache()


@cache
def _load(profile: str, name: str, dtype: str) -> Model:
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    return prepared(name, source(profile).pipeline(name, DTYPES[dtype]))


def prepared(name: str, pipeline: Any) -> Model:
    """Return a pipeline as a model: frozen, in evaluation mode and on this process's device."""
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    model = Model(name, pipeline.to(shards().device))
    model.family  # noqa: B018  (a denoiser that no family describes is refused here)
    return model
