"""Tiny random denoisers of many architectures, each with the inputs of one call and its blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import nn

UNET = {"sample_size": 8, "layers_per_block": 1, "block_out_channels": (4, 8), "norm_num_groups": 2}
CROSS = {
    **UNET,
    "cross_attention_dim": 8,
    "attention_head_dim": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
PLAIN = {**UNET, "attention_head_dim": 4}
PLAIN |= {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
HEADS = {"num_attention_heads": 2, "in_channels": 4, "out_channels": 4}
CLASSES = {**HEADS, "attention_head_dim": 4, "out_channels": 8, "num_layers": 3, "sample_size": 8}
JOINT = {**HEADS, "joint_attention_dim": 8, "attention_head_dim": 8, "sample_size": 8, "caption_projection_dim": 16}
LUMINA = {"sample_size": 8, "in_channels": 4, "hidden_size": 24, "num_layers": 2, "num_refiner_layers": 1}
LUMINA |= {"num_attention_heads": 3, "num_kv_heads": 1, "multiple_of": 2, "axes_dim_rope": (4, 2, 2), "cap_feat_dim": 8}
FLUX = {"patch_size": 1, "in_channels": 4, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16}
FLUX |= {"num_attention_heads": 2, "joint_attention_dim": 8, "pooled_projection_dim": 8, "axes_dims_rope": (4, 4, 8)}
WAN = {**HEADS, "attention_head_dim": 12, "text_dim": 8, "freq_dim": 16, "ffn_dim": 16, "num_layers": 2}
LTX = {**HEADS, "attention_head_dim": 8, "cross_attention_dim": 16, "num_layers": 2, "caption_channels": 8}
SANA = {**HEADS, "attention_head_dim": 4, "num_cross_attention_heads": 2, "cross_attention_head_dim": 4}
SANA |= {"num_layers": 2, "cross_attention_dim": 8, "caption_channels": 8, "sample_size": 8, "patch_size": 1}
VIDEO = {**HEADS, "attention_head_dim": 8, "time_embed_dim": 4, "text_embed_dim": 8, "num_layers": 2}
VIDEO |= {"sample_width": 8, "sample_height": 8, "sample_frames": 8, "max_text_seq_length": 5}

IMAGE, TEXT, POOLED, TOKENS = (1, 4, 8, 8), (1, 5, 8), (1, 8), (1, 16, 4)
CLASS = torch.zeros(1, dtype=torch.long)
POSITIONS = {"img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(5, 3)}

# Class, configuration, the name and shape of its sample, the shapes or values of its other inputs, its rows of blocks.
KINDS: dict[str, tuple[str, dict, tuple, dict, tuple[str, ...]]] = {
    "unet": ("UNet2DModel", PLAIN, ("sample", (1, 3, 8, 8)), {}, ("down_blocks", "mid_block", "up_blocks")),
    "text unet": (
        "UNet2DConditionModel",
        CROSS,
        ("sample", IMAGE),
        {"encoder_hidden_states": TEXT},
        ("down_blocks", "mid_block", "up_blocks"),
    ),
    "dit": (
        "DiTTransformer2DModel",
        CLASSES | {"num_embeds_ada_norm": 10},
        ("hidden_states", IMAGE),
        {"class_labels": CLASS},
        ("transformer_blocks",),
    ),
    "sd3": (
        "SD3Transformer2DModel",
        JOINT | {"num_layers": 3, "pooled_projection_dim": 8, "pos_embed_max_size": 8},
        ("hidden_states", IMAGE),
        {"encoder_hidden_states": TEXT, "pooled_projections": POOLED},
        ("transformer_blocks",),
    ),
    "auraflow": (
        "AuraFlowTransformer2DModel",
        JOINT | {"num_mmdit_layers": 2, "num_single_dit_layers": 2, "pos_embed_max_size": 64},
        ("hidden_states", IMAGE),
        {"encoder_hidden_states": TEXT},
        ("joint_transformer_blocks", "single_transformer_blocks"),
    ),
    "flux": (
        "FluxTransformer2DModel",
        FLUX,
        ("hidden_states", TOKENS),
        {"encoder_hidden_states": TEXT, "pooled_projections": POOLED, **POSITIONS},
        ("transformer_blocks", "single_transformer_blocks"),
    ),
    "lumina2": (  # writes text and picture into parts of one new tensor
        "Lumina2Transformer2DModel",
        LUMINA,
        ("hidden_states", IMAGE),
        {"encoder_hidden_states": TEXT, "encoder_attention_mask": torch.ones(1, 5, dtype=torch.bool)},
        ("context_refiner", "noise_refiner", "layers"),
    ),
    "sana": (
        "SanaTransformer2DModel",
        SANA,
        ("hidden_states", IMAGE),
        {"encoder_hidden_states": TEXT},
        ("transformer_blocks",),
    ),
    "wan": (
        "WanTransformer3DModel",
        WAN | {"rope_max_seq_len": 32},
        ("hidden_states", (1, 4, 2, 8, 8)),
        {"encoder_hidden_states": TEXT},
        ("blocks",),
    ),
    "ltx": (
        "LTXVideoTransformer3DModel",
        LTX,
        ("hidden_states", (1, 32, 4)),
        {
            "encoder_hidden_states": TEXT,
            "encoder_attention_mask": torch.ones(1, 5, dtype=torch.bool),
            **{"num_frames": 2, "height": 4, "width": 4},
        },
        ("transformer_blocks",),
    ),
    "cogvideox": (
        "CogVideoXTransformer3DModel",
        VIDEO,
        ("hidden_states", (1, 2, 4, 8, 8)),
        {"encoder_hidden_states": TEXT},
        ("transformer_blocks",),
    ),
}


@dataclass
class Denoiser:
    """A tiny denoiser of a kind, ready to be called."""

    module: nn.Module
    sites: tuple[str, ...]
    sample: str
    inputs: dict[str, Any]

    def call(self, timestep: float) -> torch.Tensor:
        """One call of a run, on other numbers than the call before."""
        inputs = {**self.inputs, "timestep": torch.tensor([timestep])}
        return self.module(**{**inputs, self.sample: inputs[self.sample] + timestep / 1000}, return_dict=False)[0]


def made(kind: str) -> Denoiser:
    """Make the denoiser of a kind. None of its weights is zero, so that every block matters."""
    name, config, (sample, shape), others, rows = KINDS[kind]
    torch.manual_seed(0)
    module = getattr(diffusers, name)(**config).eval()
    for parameter in module.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    shapes = {sample: shape, **others}
    inputs = {key: torch.randn(given) if isinstance(given, tuple) else given for key, given in shapes.items()}
    found = {row: module.get_submodule(row) for row in rows}
    sites = [
        f"{row}.{index}" if isinstance(part, nn.ModuleList) else row
        for row, part in found.items()
        for index in range(len(part) if isinstance(part, nn.ModuleList) else 1)
    ]
    return Denoiser(module, tuple(sites), sample, {**inputs, "timestep": torch.tensor([500.0])})
