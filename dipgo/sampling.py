"""Samplers and the one guided denoising loop, differentiable, for any diffusers scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, PNDMScheduler
from torch import nn

from dipgo.errors import DipgoError, unknown

SCHEDULERS: dict[str, tuple[type, dict[str, Any]]] = {
    "plms": (PNDMScheduler, {"skip_prk_steps": True}),
    "ddim": (DDIMScheduler, {"clip_sample": False}),
    "dpm": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 2}),
}


@dataclass(frozen=True)
class Sampler:
    """A scheduler at a step count.

    `name` is a key of `SCHEDULERS`; `config` the model's own scheduler configuration (noise schedule,
    spacing, prediction type). `stride` k makes only every k-th call of the grid while each step still goes
    one grid step: the broken reading of "skip every k-th step", kept because a table row asks for it.
    """

    name: str
    config: Mapping[str, Any]
    steps: int
    stride: int = 1

    def __post_init__(self) -> None:
        if self.name not in SCHEDULERS:
            raise unknown("scheduler", self.name, SCHEDULERS)
        train_steps = self.config.get("num_train_timesteps", 1000)
        if not 1 <= self.steps <= train_steps:
            raise DipgoError(f"steps is {self.steps}; it must lie between 1 and {train_steps}")

    def scheduler(self) -> Any:
        """A fresh diffusers scheduler with its timesteps set."""
        kind, overrides = SCHEDULERS[self.name]
        scheduler = kind.from_config({**self.config, **overrides})
        scheduler.set_timesteps(self.steps)
        scheduler.timesteps = scheduler.timesteps[:: self.stride]
        return scheduler

    @property
    def timesteps(self) -> np.ndarray:
        """The timestep of every denoiser call, int [calls]."""
        return self.scheduler().timesteps.numpy()

    @property
    def call_steps(self) -> np.ndarray:
        """The step that each denoiser call belongs to, int [calls].

        PLMS calls the denoiser twice at its second timestep, so that 50 steps are 51 calls: 0, 1, 1, 2, ...
        """
        return np.concatenate([[0], np.cumsum(np.diff(self.timesteps) != 0)])

    @property
    def calls(self) -> int:
        """Denoiser calls of one run."""
        return len(self.timesteps)

    @property
    def charged_steps(self) -> int:
        """Distinct timesteps: what the paper charges for, so that PLMS at 50 steps costs 50 calls, not 51."""
        return int(self.call_steps[-1]) + 1


def rollout(
    denoiser: nn.Module,
    sampler: Sampler,
    latents: torch.Tensor,
    conditioning: Mapping[str, torch.Tensor],
    guidance: float,
) -> torch.Tensor:
    """One full sampler run from noise `latents` [n, c, h, w] to final latents of the same shape.

    With `guidance` > 1 the tensors in `conditioning` (keyword arguments of the denoiser) hold 2n rows, the
    unconditional ones first; otherwise n rows. Gradients flow unless the caller switches them off.
    """
    scheduler = sampler.scheduler()
    latents = latents * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        sample = torch.cat([latents] * 2) if guidance > 1 else latents
        sample = scheduler.scale_model_input(sample, timestep)
        prediction = denoiser(sample, timestep, **conditioning, return_dict=False)[0]
        if guidance > 1:
            unconditional, conditional = prediction.chunk(2)
            prediction = unconditional + guidance * (conditional - unconditional)
        latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
    return latents


def initial_noise(seed: int, indices: list[int], shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal noise [len(indices), *shape], float32 on the CPU.

    Each picture's noise depends on (seed, prompt index) alone: batch size, order and resuming cannot change it.
    """
    noise = []
    for index in indices:
        state = int(np.random.SeedSequence([seed, index]).generate_state(1, dtype=np.uint64)[0])
        noise.append(torch.randn(shape, generator=torch.Generator().manual_seed(state)))
    return torch.stack(noise)
