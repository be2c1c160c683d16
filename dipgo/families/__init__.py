"""The families that the suite knows, one record each; `FAMILIES` may be added to."""

from __future__ import annotations

from torch import nn

from dipgo.errors import DipgoError
from dipgo.families.family import Family, Unit, denoiser_of
from dipgo.families.transformer import DIT, PIXART
from dipgo.families.unet import SD15, SD21, SDXL

FAMILIES: list[Family] = [SD15, SD21, SDXL, DIT, PIXART]


def family_of(denoiser: nn.Module) -> Family:
    """Return the family that a denoiser belongs to; raise `DipgoError` for a model that no family describes."""
    for family in FAMILIES:
        if isinstance(denoiser, family.denoiser) and family.matches(denoiser.config):
            return family
    known = ", ".join(sorted({family.denoiser.__name__ for family in FAMILIES}))
    raise DipgoError(
        f"no family describes this {type(denoiser).__name__}; known denoisers: {known}. Add a record to FAMILIES"
    )


def branch_guidance(denoiser: nn.Module, guidance: float) -> float:
    """Return the guidance scale for the sampling loop: 1, so no second branch, where the denoiser is told the scale as
    an input (a latent consistency model)."""
    return 1.0 if getattr(denoiser.config, "time_cond_proj_dim", None) else guidance


__all__ = ["FAMILIES", "Family", "Unit", "branch_guidance", "denoiser_of", "family_of"]
