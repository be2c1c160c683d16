"""The families of Stable Diffusion's U-Nets: SD-1.5 and SD-2.1 with 9 blocks, and SD-XL with 7."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn

from dipgo.families.family import Conditioning, Family, like, rows

TIME_IDS = 6
"""The numbers that SD-XL is told of a picture: original size, corner of the crop and target size, two of each."""


def _blocks(unet: UNet2DConditionModel) -> tuple[str, ...]:
    down = [f"down_blocks.{i}" for i in range(len(unet.down_blocks))]
    mid = ["mid_block"] if unet.mid_block is not None else []
    up = [f"up_blocks.{i}" for i in range(len(unet.up_blocks))]
    return (*down, *mid, *up)


def layers(unet: nn.Module, block: str) -> tuple[str, ...]:
    """Return the layers of a block in order of execution: residual and attention layers in turn, then the resampler."""
    module = unet.get_submodule(block)
    resnets = [f"{block}.resnets.{i}" for i in range(len(module.resnets))]
    attentions = [f"{block}.attentions.{i}" for i in range(len(getattr(module, "attentions", None) or ()))]
    found = [name for turn in zip_longest(resnets, attentions) for name in turn if name]
    resamplers = [kind for kind in ("downsamplers", "upsamplers") if getattr(module, kind, None) is not None]
    return (*found, *(f"{block}.{kind}.0" for kind in resamplers))


def _residuals(unet: UNet2DConditionModel) -> tuple[str, ...]:
    found = [layer for block in _blocks(unet) for layer in layers(unet, block)]
    return tuple(name for name in found if isinstance(unet.get_submodule(name), (ResnetBlock2D, Transformer2DModel)))


def _probe(unet: UNet2DConditionModel) -> dict[str, Any]:
    config, make = unet.config, like(unet)
    size = config.sample_size if isinstance(config.sample_size, (tuple, list)) else (config.sample_size,) * 2
    probe = {
        "sample": torch.zeros(1, config.in_channels, *size, **make),
        "timestep": torch.zeros(1, dtype=torch.long, device=make["device"]),
        "encoder_hidden_states": torch.zeros(1, 77, config.cross_attention_dim, **make),
    }
    if config.time_cond_proj_dim:
        probe["timestep_cond"] = torch.zeros(1, config.time_cond_proj_dim, **make)
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - TIME_IDS * config.addition_time_embed_dim
        probe["added_cond_kwargs"] = {
            "text_embeds": torch.zeros(1, pooled, **make),
            "time_ids": torch.zeros(1, TIME_IDS, **make),
        }
    return probe


def _condition(pipeline: Any, captions: Sequence[str], guidance: float) -> Conditioning:
    positive, negative = pipeline.encode_prompt(list(captions), pipeline.device, 1, guidance > 1)
    return {"encoder_hidden_states": rows(positive, negative, guidance > 1)}


def _sdxl_condition(pipeline: Any, captions: Sequence[str], guidance: float) -> Conditioning:
    """The text, its pooled embedding and the sizes of the picture. A latent consistency model also takes the guidance
    scale."""
    unet = pipeline.unet
    embedded = unet.config.time_cond_proj_dim
    guided = guidance > 1 and not embedded
    text, no_text, pooled, no_pooled = pipeline.encode_prompt(
        list(captions), device=pipeline.device, num_images_per_prompt=1, do_classifier_free_guidance=guided
    )
    pixels, count = unet.config.sample_size * pipeline.vae_scale_factor, len(captions) * (1 + guided)
    sizes = torch.tensor([[pixels, pixels, 0, 0, pixels, pixels]], **like(unet))
    conditioning = {
        "encoder_hidden_states": rows(text, no_text, guided),
        "added_cond_kwargs": {"text_embeds": rows(pooled, no_pooled, guided), "time_ids": sizes.repeat(count, 1)},
    }
    if embedded:
        scales = torch.full((count,), float(guidance - 1))
        embedding = pipeline.get_guidance_scale_embedding(scales, embedding_dim=embedded)
        conditioning["timestep_cond"] = embedding.to(**like(unet))
    return conditioning


def _tiny(**config: Any) -> UNet2DConditionModel:
    """A U-Net of SD-1.5's shape with two layers a block, at the smallest width that works."""
    shape = {
        "block_out_channels": (4, 8, 8, 8),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "attention_head_dim": 2,
    }
    fixed = {"sample_size": 8, "layers_per_block": 2, "cross_attention_dim": 8, "norm_num_groups": 2}
    return UNet2DConditionModel(**fixed, **{**shape, **config}).eval()


def _tiny_sd21() -> UNet2DConditionModel:
    return _tiny(use_linear_projection=True, attention_head_dim=(1, 2, 4, 4))


def _tiny_sdxl() -> UNet2DConditionModel:
    return _tiny(
        block_out_channels=(4, 8, 8),
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
        transformer_layers_per_block=(1, 1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=8 + TIME_IDS * 4,
    )


def _is_sdxl(config: Any) -> bool:
    return config.addition_embed_type == "text_time"


def _is_sd21(config: Any) -> bool:
    return config.use_linear_projection and not _is_sdxl(config)


def _is_sd15(config: Any) -> bool:
    return not config.use_linear_projection and not _is_sdxl(config)


def _family(name: str, **differs: Any) -> Family:
    common = {"blocks": _blocks, "residuals": _residuals, "layers": layers, "probe": _probe, "condition": _condition}
    return Family(name, UNet2DConditionModel, **{**common, **differs})


SDXL = _family("sdxl", condition=_sdxl_condition, tiny=_tiny_sdxl, matches=_is_sdxl)
SD21 = _family("sd21", tiny=_tiny_sd21, matches=_is_sd21)
SD15 = _family("sd15", tiny=_tiny, matches=_is_sd15)
