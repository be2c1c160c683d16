"""The schedulers that a sampler may use, by name. No torch: diffusers' classes are named here and loaded later."""

from __future__ import annotations

from typing import Any

from dipgo.registry import Registry

SCHEDULERS: Registry[tuple[str, dict[str, Any]]] = Registry(
    "scheduler",
    {
        "plms": ("PNDMScheduler", {"skip_prk_steps": True}),
        "ddim": ("DDIMScheduler", {"clip_sample": False}),
        "dpm": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
        "unipc": ("UniPCMultistepScheduler", {"solver_order": 2}),
        "lcm": ("LCMScheduler", {"clip_sample": False}),
    },
)
"""The class in diffusers and the settings that override a model's own scheduler configuration."""

STOCHASTIC = ("lcm",)
"""Schedulers whose steps add noise."""
