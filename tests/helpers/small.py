"""Changes that make the paper's pipelines small enough for a test, by their parts."""

from __future__ import annotations

from typing import Any

TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VAE = {
    "block_out_channels": (32, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1,
}
UNET = {
    "sample_size": 8,
    "norm_num_groups": 8,
    "block_out_channels": (32,) * 4,
    "attention_head_dim": 2,
    "cross_attention_dim": 32,
}
SD15 = {"unet": UNET, "text_encoder": TEXT, "vae": VAE}
SDXL_UNET = {
    **UNET,
    "block_out_channels": (32,) * 3,
    "cross_attention_dim": 64,
    "transformer_layers_per_block": (1, 1, 2),
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 32 + 6 * 8,
}
TRANSFORMER = {"sample_size": 16, "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 4}

SMALL: dict[str, dict[str, dict[str, Any]]] = {
    "sd15": SD15,
    "bk-sdm-base": SD15,
    "bk-sdm-small": SD15,
    "sd21": SD15,
    "sdxl-lcm": {"unet": SDXL_UNET, "text_encoder": TEXT, "text_encoder_2": {**TEXT, "projection_dim": 32}, "vae": VAE},
    "dit-xl-2": {"transformer": TRANSFORMER, "vae": VAE},
    "pixart-alpha": {
        "transformer": {**TRANSFORMER, "cross_attention_dim": 16, "caption_channels": 32},
        "text_encoder": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
        "vae": VAE,
    },
}
