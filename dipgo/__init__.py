"""DiP-GO: learn, for every block of a diffusion model at every denoising step, whether to compute or to reuse it.

Names are loaded when they are first used (PEP 562), so that `import dipgo` and its modules without tensors, such as
`dipgo.errors` and `dipgo.schedule`, load no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_MODULES = {
    "costs": ("CostModel", "PaperMacs", "count_costs"),
    "errors": ("DipgoError", "PartialTrajectory", "UnreachableRatio"),
    "execute.gating": ("gated",),
    "execute.lockstep": ("gated_together", "rollout_together"),
    "execute.observe": ("observed",),
    "execute.policy": ("Policy", "Question", "deciding"),
    "execute.trace": ("Outcome", "Trace"),
    "families": ("FAMILIES", "Family", "Unit", "branch_guidance", "denoiser_of", "family_of"),
    "families.watch": ("capture", "costs_of", "find_sites"),
    "forecast.learning": ("LearnConfig", "Learned", "learn_forecast"),
    "rules": ("RULES", "Forecast", "ReuseRule", "ruled"),
    "graph": ("BlockGraph", "Execution", "Site", "trace_graph"),
    "pruner.losses": ("consistency",),
    "pruner.network": ("Pruner", "straight_through"),
    "pruner.select": ("TOLERANCE", "select_schedule"),
    "pruner.train": ("Batch", "TrainConfig", "TrainStep", "train_pruner"),
    "recipes.accelerate": ("Accelerated", "accelerate"),
    "recipes.compare": ("Comparison", "compare", "measured"),
    "recipes.drift": ("drift",),
    "recipes.learn": ("learn",),
    "recipes.recipe": ("Recipe",),
    "registry": ("Registry",),
    "sampling": ("Diffusion", "Inputs", "Sampler", "initial_noise", "picture_seeds", "rollout"),
    "schedule": ("Schedule",),
    "state": ("State",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
