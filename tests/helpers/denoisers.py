"""Tiny random denoisers of many kinds, each with the inputs of one call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

UNET = {"sample_size": 8, "layers_per_block": 1, "block_out_channels": (4, 8), "norm_num_groups": 2}
PLAIN = {**UNET, "attention_head_dim": 4}
PLAIN |= {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
DOWN = {"layers_per_block": 1, "block_out_channels": (4, 8), "norm_num_groups": 2, "cross_attention_dim": 8}
DOWN |= {"attention_head_dim": 2, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D")}
CROSS = {**UNET, **DOWN, "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
ADDED = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 32}
VIDEO_UNET = {"sample_size": 8, "in_channels": 8, "layers_per_block": 1, "block_out_channels": (32, 64)}
VIDEO_UNET |= {"cross_attention_dim": 8, "num_attention_heads": 2, "addition_time_embed_dim": 4, "num_frames": 2}
VIDEO_UNET |= {"projection_class_embeddings_input_dim": 12}
VIDEO_UNET |= {"down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal")}
VIDEO_UNET |= {"up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal")}

# Wide and deep enough that most of the weights are in the blocks, as in the published sizes.
HEADS = {"num_attention_heads": 2, "in_channels": 4, "out_channels": 4, "attention_head_dim": 16}
GRID = {**HEADS, "sample_size": 8, "patch_size": 2}
JOINT = {**GRID, "joint_attention_dim": 8, "caption_projection_dim": 32}
FLUX = {"patch_size": 1, "in_channels": 4, "num_layers": 2, "num_single_layers": 3, "attention_head_dim": 16}
FLUX |= {"num_attention_heads": 2, "joint_attention_dim": 8}
SANA = {"num_cross_attention_heads": 2, "cross_attention_head_dim": 16, "cross_attention_dim": 32}
LUMINA = {"sample_size": 8, "in_channels": 4, "hidden_size": 48, "num_layers": 3, "num_refiner_layers": 1}
LUMINA |= {"num_attention_heads": 3, "num_kv_heads": 1, "multiple_of": 2, "axes_dim_rope": (8, 4, 4), "cap_feat_dim": 8}
HUNYUAN = {"cross_attention_dim": 8, "cross_attention_dim_t5": 8, "pooled_projection_dim": 4, "text_len": 4}
AUDIO = {"sample_size": 8, "num_key_value_attention_heads": 2, "time_proj_dim": 8, "global_states_input_dim": 8}
HIDREAM = {"num_attention_heads": 2, "in_channels": 4, "patch_size": 2, "num_layers": 2, "num_single_layers": 2}
HIDREAM |= {"attention_head_dim": 16, "caption_channels": [8, 8], "text_emb_dim": 8, "axes_dims_rope": (8, 4, 4)}
VIDEO = {"time_embed_dim": 4, "sample_width": 8, "sample_height": 8, "sample_frames": 8, "max_text_seq_length": 5}

IMAGE, TEXT, POOLED, TOKENS = (1, 4, 8, 8), (1, 5, 8), (1, 8), (1, 16, 4)
CLIP = (1, 4, 2, 8, 8)
CLASS = torch.zeros(1, dtype=torch.long)
MASK = torch.ones(1, 5, dtype=torch.bool)
POSITIONS = {"img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(5, 3)}
ROTATIONS = [torch.ones(16, 32), torch.zeros(16, 32)]
CONTROL = [(1, 4, 8, 8), (1, 4, 8, 8), (1, 4, 4, 4), (1, 8, 4, 4)]

# Class, configuration, and the inputs of a call, the sample first: shapes of noise, or values.
KINDS: dict[str, tuple[str, dict, dict]] = {
    "unet": ("UNet2DModel", PLAIN, {"sample": (1, 3, 8, 8)}),
    "sd unet": ("UNet2DConditionModel", CROSS, {"sample": IMAGE, "encoder_hidden_states": TEXT}),
    "sdxl unet": (
        "UNet2DConditionModel",
        CROSS | ADDED | {"transformer_layers_per_block": (1, 2), "use_linear_projection": True},
        {
            "sample": IMAGE,
            "encoder_hidden_states": TEXT,
            "added_cond_kwargs": {"text_embeds": torch.ones(1, 8), "time_ids": torch.ones(1, 6)},
        },
    ),
    "inpainting unet": (
        "UNet2DConditionModel",
        CROSS | {"in_channels": 9},
        {"sample": (1, 9, 8, 8), "encoder_hidden_states": TEXT},
    ),
    "controlled unet": (
        "UNet2DConditionModel",
        CROSS,
        {
            "sample": IMAGE,
            "encoder_hidden_states": TEXT,
            "down_block_additional_residuals": [torch.ones(shape) for shape in CONTROL],
            "mid_block_additional_residual": (1, 8, 4, 4),
        },
    ),
    "controlnet": (
        "ControlNetModel",
        DOWN | {"conditioning_embedding_out_channels": (4, 8)},
        {"sample": IMAGE, "encoder_hidden_states": TEXT, "controlnet_cond": (1, 3, 16, 16)},
    ),
    "video unet": (
        "UNetSpatioTemporalConditionModel",
        VIDEO_UNET,
        {"sample": (1, 2, 8, 8, 8), "encoder_hidden_states": (1, 1, 8), "added_time_ids": torch.ones(1, 3)},
    ),
    "dit": (
        "DiTTransformer2DModel",
        GRID | {"out_channels": 8, "num_layers": 3, "num_embeds_ada_norm": 10},
        {"hidden_states": IMAGE, "class_labels": CLASS},
    ),
    "pixart-sigma": (
        "PixArtTransformer2DModel",
        GRID
        | {"attention_head_dim": 32, "num_layers": 8, "cross_attention_dim": 64, "caption_channels": 8}
        | {"out_channels": 8, "use_additional_conditions": False},
        {
            "hidden_states": IMAGE,
            "encoder_hidden_states": TEXT,
            "encoder_attention_mask": torch.ones(1, 5),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        },
    ),
    "sd3": (
        "SD3Transformer2DModel",
        JOINT | {"num_layers": 5, "pooled_projection_dim": 8, "pos_embed_max_size": 8},
        {"hidden_states": IMAGE, "encoder_hidden_states": TEXT, "pooled_projections": POOLED},
    ),
    "flux": (
        "FluxTransformer2DModel",
        FLUX | {"pooled_projection_dim": 8, "axes_dims_rope": (4, 4, 8)},
        {"hidden_states": TOKENS, "encoder_hidden_states": TEXT, "pooled_projections": POOLED, **POSITIONS},
    ),
    "flux2": (
        "Flux2Transformer2DModel",
        FLUX
        | {"axes_dims_rope": (4, 4, 4, 4), "timestep_guidance_channels": 8, "guidance_embeds": False}
        | {"num_layers": 3, "num_single_layers": 8},
        {
            "hidden_states": TOKENS,
            "encoder_hidden_states": TEXT,
            "img_ids": torch.zeros(1, 16, 4),
            "txt_ids": torch.zeros(1, 5, 4),
        },
    ),
    "chroma": (
        "ChromaTransformer2DModel",
        FLUX
        | {"axes_dims_rope": (4, 4, 8), "approximator_num_channels": 8}
        | {"approximator_hidden_dim": 16, "approximator_layers": 1},
        {"hidden_states": TOKENS, "encoder_hidden_states": TEXT, **POSITIONS},
    ),
    "qwen-image": (
        "QwenImageTransformer2DModel",
        HEADS | {"in_channels": 16, "joint_attention_dim": 8, "axes_dims_rope": (8, 4, 4), "num_layers": 4},
        {
            "hidden_states": (1, 16, 16),
            "encoder_hidden_states": TEXT,
            "encoder_hidden_states_mask": torch.ones(1, 5, dtype=torch.long),
            "img_shapes": [[(1, 4, 4)]],
        },
    ),
    "auraflow": (
        "AuraFlowTransformer2DModel",
        JOINT | {"num_mmdit_layers": 2, "num_single_dit_layers": 2, "pos_embed_max_size": 64},
        {"hidden_states": IMAGE, "encoder_hidden_states": TEXT},
    ),
    "lumina2": (  # writes text and picture into parts of one new tensor
        "Lumina2Transformer2DModel",
        LUMINA,
        {"hidden_states": IMAGE, "encoder_hidden_states": TEXT, "encoder_attention_mask": MASK},
    ),
    "sana": (
        "SanaTransformer2DModel",
        GRID | SANA | {"num_layers": 10, "caption_channels": 8, "patch_size": 1},
        {"hidden_states": IMAGE, "encoder_hidden_states": TEXT},
    ),
    "hunyuandit": (  # later blocks read what earlier ones gave
        "HunyuanDiT2DModel",
        {name: value for name, value in GRID.items() if name != "out_channels"}
        | HUNYUAN
        | {"num_layers": 8, "text_len_t5": 4, "hidden_size": 64, "attention_head_dim": 32}
        | {"use_style_cond_and_image_meta_size": False},
        {
            "hidden_states": IMAGE,
            "encoder_hidden_states": (1, 4, 8),
            "text_embedding_mask": torch.ones(1, 4),
            "encoder_hidden_states_t5": (1, 4, 8),
            "text_embedding_mask_t5": torch.ones(1, 4),
            "image_rotary_emb": ROTATIONS,
        },
    ),
    "hidream": (
        "HiDreamImageTransformer2DModel",
        HIDREAM | {"max_resolution": (8, 8), "llama_layers": [0, 0, 1, 1]},
        {
            "hidden_states": IMAGE,
            "encoder_hidden_states_t5": TEXT,
            "encoder_hidden_states_llama3": (2, 1, 5, 8),
            "pooled_embeds": POOLED,
        },
    ),
    "cogview4": (
        "CogView4Transformer2DModel",
        HEADS
        | {"num_layers": 3, "text_embed_dim": 8, "time_embed_dim": 8, "condition_dim": 4}
        | {"pos_embed_max_size": 8, "sample_size": 8, "rope_axes_dim": (8, 8)},
        {
            "hidden_states": IMAGE,
            "encoder_hidden_states": TEXT,
            "original_size": torch.full((1, 2), 8.0),
            "target_size": torch.full((1, 2), 8.0),
            "crop_coords": torch.zeros(1, 2),
        },
    ),
    "wan": (
        "WanTransformer3DModel",
        HEADS | {"text_dim": 8, "freq_dim": 16, "ffn_dim": 64, "num_layers": 8, "rope_max_seq_len": 32},
        {"hidden_states": CLIP, "encoder_hidden_states": TEXT},
    ),
    "ltx": (
        "LTXVideoTransformer3DModel",
        HEADS | {"cross_attention_dim": 32, "num_layers": 10, "caption_channels": 8},
        {
            "hidden_states": (1, 32, 4),
            "encoder_hidden_states": TEXT,
            "encoder_attention_mask": MASK,
            **{"num_frames": 2, "height": 4, "width": 4},
        },
    ),
    "cogvideox": (
        "CogVideoXTransformer3DModel",
        HEADS | VIDEO | {"text_embed_dim": 8, "num_layers": 2},
        {"hidden_states": (1, 2, 4, 8, 8), "encoder_hidden_states": TEXT},
    ),
    "mochi": (
        "MochiTransformer3DModel",
        {**HEADS, "out_channels": None, "num_layers": 3, "pooled_projection_dim": 16}
        | {"text_embed_dim": 8, "time_embed_dim": 4, "max_sequence_length": 5},
        {"hidden_states": CLIP, "encoder_hidden_states": TEXT, "encoder_attention_mask": MASK},
    ),
    "stable audio": (
        "StableAudioDiTModel",
        HEADS | AUDIO | {"num_layers": 3, "cross_attention_dim": 8, "cross_attention_input_dim": 8},
        {
            "hidden_states": (1, 4, 8),
            "encoder_hidden_states": TEXT,
            "global_hidden_states": (1, 1, 8),
            "rotary_embedding": (torch.ones(9, 8), torch.ones(9, 8)),
        },
    ),
}


@dataclass
class Denoiser:
    """A tiny denoiser of a kind, ready to be called."""

    module: nn.Module
    inputs: dict[str, Any]
    """The inputs of a call by their names, the sample first."""

    def at(self, timestep: float) -> dict[str, Any]:
        """Return the inputs of a call in a run; its numbers are others than those of the call before."""
        sample, *_ = self.inputs
        time = next(name for name in ("timestep", "timesteps", "t") if name in self.inputs)
        moved = self.inputs[sample] + timestep / 1000
        return {**self.inputs, sample: moved, time: torch.full_like(self.inputs[time], timestep)}

    def call(self, timestep: float) -> list[torch.Tensor]:
        """Return the tensors of one call's output."""
        output = self.module(**self.at(timestep))
        leaves = tree_leaves(output if isinstance(output, torch.Tensor) else output.to_tuple())
        return [leaf.clone() for leaf in leaves]


class PlainDenoiser(nn.Module):
    """No model of diffusers: no configuration, its timestep by position, a bare tensor as its output."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.last = nn.Linear(1, 16), nn.Linear(16, 4)
        self.into = nn.Linear(4, 16)
        self.body = nn.ModuleList(PlainBlock() for _ in range(4))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        x = self.into(x) + self.embed(t.view(-1, 1, 1) / 1000)
        for part in self.body:
            x = part(x)
        return self.last(x)


class PlainBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.widen, self.narrow = nn.Linear(16, 64), nn.Linear(64, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.narrow(self.widen(x).relu())


def made(kind: str) -> Denoiser:
    """Make the denoiser of a kind. None of its weights is zero, so that every block matters."""
    torch.manual_seed(0)
    if kind == "plain":
        return Denoiser(PlainDenoiser(), {"x": torch.randn(1, 6, 4), "t": torch.tensor([500.0])})
    name, config, shapes = KINDS[kind]
    module = getattr(diffusers, name)(**config).eval()
    for parameter in module.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    inputs = {key: torch.randn(given) if _is_shape(given) else given for key, given in shapes.items()}
    time = "timesteps" if kind == "hidream" else "timestep"
    return Denoiser(module, {**inputs, time: torch.tensor([500.0])})


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(size, int) for size in value)
