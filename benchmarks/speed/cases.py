"""What the speed benchmarks run: a picture of a model or its denoiser calls alone, with or without a schedule."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from baselines import Plan, PlanContext, method
from benchmarks.machine.shards import shards
from benchmarks.models import model as models
from benchmarks.models.model import Model
from benchmarks.specs.run import Setting
from benchmarks.supply import random_weights
from dipgo import Diffusion, Inputs, Sampler, Schedule, gated, initial_noise, picture_seeds, rollout

CAPTION = "sunflower, fluent"
GUIDANCE = 4.0
SEEDS = picture_seeds(0, [0])


@dataclass(frozen=True, eq=False)
class Case:
    """A model with a sampler, which is timed at batch 1 with both guidance branches."""

    model: Model
    sampler: Sampler

    @property
    def denoiser(self) -> nn.Module:
        return self.model.denoiser

    @cached_property
    def noise(self) -> torch.Tensor:
        return initial_noise(SEEDS, self.model.latent_shape).to(self.model.device)

    @cached_property
    def conditioning(self) -> Any:
        return self.model.condition([self._caption], GUIDANCE)

    @property
    def _caption(self) -> str:
        labels = getattr(self.model.pipeline, "labels", None)
        return next(iter(labels)) if labels else CAPTION

    def plan(self, name: str, **params: Any) -> Plan:
        """Return the plan of a method that needs no pictures."""
        return method(name).plan(self._context(params))

    def gates(self, sites: list[str], reuse: np.ndarray) -> Plan:
        """Return the plan that reuses any modules of the denoiser where `reuse`, bool [calls, sites], is true."""
        context = self._context({}).at_sites(sites)
        return Plan(self.sampler, Schedule(context.graph.sites, reuse), context.costs)

    def pruned(self, ratio: float, seed: int = 1) -> Plan:
        """Return the plan of Algorithm 1 on random scores."""
        return self.plan("random_scores", ratio=ratio, seed=seed)

    def gated(self, plan: Plan | None) -> Any:
        """Give the context in which the denoiser follows a plan. Without a plan it stays as diffusers made it."""
        return nullcontext() if plan is None else gated(self.denoiser, plan.costs.graph, plan.schedule)

    @torch.no_grad()
    def calls(self, plan: Plan | None = None) -> None:
        """Make all denoiser calls of one picture, without the steps of the sampler between them."""
        sample = torch.cat([self.noise] * 2).to(self.denoiser.dtype)
        with self.gated(plan):
            for timestep in self._timesteps:
                self.denoiser(sample, timestep=timestep, **self.conditioning, return_dict=False)

    @cached_property
    def _timesteps(self) -> list[torch.Tensor]:
        return list(torch.as_tensor(self.sampler.timesteps, device=self.model.device)[:, None].expand(-1, 2))

    @torch.no_grad()
    def latents(self, plan: Plan | None = None, denoiser: Any = None) -> torch.Tensor:
        """Return the final latents [1, c, h, w]. `denoiser` is called in place of the model's where it is given."""
        with self.gated(plan):
            diffusion = Diffusion(denoiser or self.denoiser, self.sampler, GUIDANCE)
            return rollout(diffusion, Inputs(self.noise, self.conditioning, SEEDS))

    @torch.no_grad()
    def picture(self, plan: Plan | None = None) -> torch.Tensor:
        """Return an image [1, 3, h, w], made from its text."""
        conditioning = self.model.condition([self._caption], GUIDANCE)
        with self.gated(plan):
            latents = rollout(Diffusion(self.denoiser, self.sampler, GUIDANCE), Inputs(self.noise, conditioning, SEEDS))
        return self.model.decode(latents)

    def _context(self, params: dict[str, Any]) -> PlanContext:
        return PlanContext(self.denoiser, self.model.costs, self.sampler, params)


def setting(model: str, scheduler: str = "ddim", steps: int = 20) -> Setting:
    """Return a setting of the zoo."""
    return Setting("embedded", model, "benchmark", "float32", scheduler, steps, GUIDANCE, 64)


def zoo(model: str, scheduler: str = "ddim", steps: int = 20) -> Case:
    """Return the case of a model of the zoo."""
    loaded = models.load(setting(model, scheduler, steps))
    return Case(loaded, loaded.sampler(scheduler, steps))


def full_width(name: str, scheduler: str = "ddim", steps: int = 20) -> Case:
    """Return the case of a model of the paper at full width, with random weights.

    On a GPU it has its published size, in float16. On a CPU, where that takes minutes a picture, it is in float32 and
    its latents are 8 x 8.
    """
    gpu = shards().device.type == "cuda"
    changes = {} if gpu else {"unet": {"sample_size": 8}}
    pipeline = random_weights.pipeline(name, torch.float16 if gpu else torch.float32, **changes)
    return Case(models.prepared(name, pipeline), Sampler(scheduler, dict(pipeline.scheduler.config), steps))
