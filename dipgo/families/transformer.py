"""The families of diffusion transformers: DiT, which draws classes, and PixArt-alpha, which draws texts.

Each has 28 blocks in its published size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel
from torch import nn

from dipgo.costs import PaperMacs
from dipgo.errors import DipgoError, unknown
from dipgo.families.family import Conditioning, Family, like, rows

LAYERS = ("attn1", "attn2", "ff")
"""The layers of a block in order of execution. DiT, which reads no text, has no attn2."""
TEXT_TOKENS = 120
"""The most tokens of a caption of PixArt-alpha."""


def _blocks(transformer: nn.Module) -> tuple[str, ...]:
    return tuple(f"transformer_blocks.{i}" for i in range(len(transformer.transformer_blocks)))


def _branches(transformer: nn.Module) -> tuple[str, ...]:
    blocks = [(name, transformer.get_submodule(name)) for name in _blocks(transformer)]
    return tuple(f"{name}.{layer}" for name, block in blocks for layer in LAYERS if getattr(block, layer) is not None)


def _probe(transformer: nn.Module) -> dict[str, Any]:
    config, make = transformer.config, like(transformer)
    return {
        "hidden_states": torch.zeros(1, config.in_channels, config.sample_size, config.sample_size, **make),
        "timestep": torch.zeros(1, dtype=torch.long, device=make["device"]),
    }


def _dit_probe(transformer: DiTTransformer2DModel) -> dict[str, Any]:
    return {**_probe(transformer), "class_labels": torch.zeros(1, dtype=torch.long, device=transformer.device)}


def _dit_condition(pipeline: Any, captions: Sequence[str], guidance: float) -> Conditioning:
    """The labels of the captions, which are names of classes. The label after the last class means no class."""
    known, classes = pipeline.labels, pipeline.transformer.config.num_embeds_ada_norm
    for caption in captions:
        if caption not in known:
            raise unknown("class", caption, known)
        if not 0 <= known[caption] < classes:
            raise DipgoError(
                f"class {caption!r} has label {known[caption]}, but the denoiser knows 0 to {classes - 1}; "
                "take the pipeline's id2label from the same checkpoint"
            )
    labels = torch.tensor([known[caption] for caption in captions], device=pipeline.device)
    return {"class_labels": rows(labels, torch.full_like(labels, classes), guidance > 1)}


def _tiny_dit() -> DiTTransformer2DModel:
    return DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=4,
        out_channels=8,  # a variance beside the noise, as in the published checkpoints
        num_layers=4,
        sample_size=8,
        num_embeds_ada_norm=10,
    ).eval()


def _sizes(transformer: PixArtTransformer2DModel, count: int, pixels: float) -> dict[str, Any]:
    """The resolution and the aspect ratio, which the checkpoints for 1024 pixels take."""
    if not transformer.use_additional_conditions:
        return {"resolution": None, "aspect_ratio": None}
    make = like(transformer)
    return {"resolution": torch.full((count, 2), pixels, **make), "aspect_ratio": torch.ones(count, 1, **make)}


def _pixart_probe(transformer: PixArtTransformer2DModel) -> dict[str, Any]:
    make = like(transformer)
    return {
        **_probe(transformer),
        "encoder_hidden_states": torch.zeros(1, TEXT_TOKENS, transformer.config.caption_channels, **make),
        "encoder_attention_mask": torch.ones(1, TEXT_TOKENS, **make),
        "added_cond_kwargs": _sizes(transformer, 1, 1.0),
    }


def _pixart_condition(pipeline: Any, captions: Sequence[str], guidance: float) -> Conditioning:
    transformer, guided = pipeline.transformer, guidance > 1
    text, mask, no_text, no_mask = pipeline.encode_prompt(
        list(captions),
        guided,
        num_images_per_prompt=1,
        device=pipeline.device,
        max_sequence_length=min(TEXT_TOKENS, pipeline.tokenizer.model_max_length),
    )
    pixels = float(transformer.config.sample_size * pipeline.vae_scale_factor)
    return {
        "encoder_hidden_states": rows(text, no_text, guided),
        "encoder_attention_mask": rows(mask, no_mask, guided),
        "added_cond_kwargs": _sizes(transformer, len(captions) * (1 + guided), pixels),
    }


def _tiny_pixart() -> PixArtTransformer2DModel:
    return PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=4,
        out_channels=8,
        num_layers=4,
        cross_attention_dim=8,
        caption_channels=8,
        sample_size=8,
    ).eval()


DIT = Family(
    "dit",
    DiTTransformer2DModel,
    blocks=_blocks,
    residuals=_blocks,
    branches=_branches,
    probe=_dit_probe,
    condition=_dit_condition,
    tiny=_tiny_dit,
    macs=PaperMacs(attention=True),
)
PIXART = Family(
    "pixart",
    PixArtTransformer2DModel,
    blocks=_blocks,
    residuals=_blocks,
    branches=_branches,
    probe=_pixart_probe,
    condition=_pixart_condition,
    tiny=_tiny_pixart,
    macs=PaperMacs(branches=2),
)
