"""The schedulers that a sampler may use, by name. No torch: a class of diffusers is named here and loaded later."""

from __future__ import annotations

from typing import Any

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "plms": ("PNDMScheduler", {"skip_prk_steps": True}),
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "dpm": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "unipc": ("UniPCMultistepScheduler", {"solver_order": 2}),
    "lcm": ("LCMScheduler", {"clip_sample": False}),
}
"""The class in diffusers and the settings that override a model's own scheduler configuration."""

STOCHASTIC = ("lcm",)
"""Schedulers whose steps add noise."""
