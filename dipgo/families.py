"""What the suite must know of a model family: one record each. Its block graph is traced, not stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from dipgo.errors import DipgoError


@dataclass(frozen=True)
class Family:
    """A kind of denoiser.

    `blocks` lists the paper's gated blocks as dotted paths in order of execution; `layers` those inside one
    block, for methods that cut a block open. `probe` makes inputs for one batch-1 forward at the
    denoiser's own resolution; `tiny` a random instance for tests.
    """

    name: str
    denoiser: type[nn.Module]
    blocks: Callable[[nn.Module], tuple[str, ...]]
    layers: Callable[[nn.Module, str], tuple[str, ...]]
    probe: Callable[[nn.Module], dict[str, Any]]
    tiny: Callable[[], nn.Module]


def family_of(denoiser: nn.Module) -> Family:
    """The family that a denoiser belongs to; raises `DipgoError` for a model that none describes."""
    for family in FAMILIES:
        if isinstance(denoiser, family.denoiser):
            return family
    known = ", ".join(family.denoiser.__name__ for family in FAMILIES)
    raise DipgoError(f"no family describes {type(denoiser).__name__}; known denoisers: {known}")


def _unet_blocks(unet: UNet2DConditionModel) -> tuple[str, ...]:
    down = [f"down_blocks.{i}" for i in range(len(unet.down_blocks))]
    mid = ["mid_block"] if unet.mid_block is not None else []
    up = [f"up_blocks.{i}" for i in range(len(unet.up_blocks))]
    return (*down, *mid, *up)


def _unet_layers(unet: UNet2DConditionModel, block: str) -> tuple[str, ...]:
    """Residual and attention layers of one down or up block, then its resampler, in order of execution."""
    module = unet.get_submodule(block)
    attentions = getattr(module, "attentions", None)
    layers = []
    for i in range(len(module.resnets)):
        layers.append(f"{block}.resnets.{i}")
        if attentions is not None:
            layers.append(f"{block}.attentions.{i}")
    for kind in ("downsamplers", "upsamplers"):
        if getattr(module, kind, None) is not None:
            layers.append(f"{block}.{kind}.0")
    return tuple(layers)


def _unet_probe(unet: UNet2DConditionModel) -> dict[str, Any]:
    config, weight = unet.config, next(unet.parameters())
    size = config.sample_size if isinstance(config.sample_size, (tuple, list)) else (config.sample_size,) * 2
    make = {"device": weight.device, "dtype": weight.dtype}
    return {
        "sample": torch.zeros(1, config.in_channels, *size, **make),
        "timestep": torch.zeros(1, dtype=torch.long, device=weight.device),
        "encoder_hidden_states": torch.zeros(1, 77, config.cross_attention_dim, **make),
    }


def _tiny_unet() -> UNet2DConditionModel:
    """SD-1.5's shape, 9 blocks with two layers each, at the smallest width that works."""
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(4, 8, 8, 8),
        layers_per_block=2,
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=2,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    ).eval()


FAMILIES = (Family("sd15", UNet2DConditionModel, _unet_blocks, _unet_layers, _unet_probe, _tiny_unet),)
