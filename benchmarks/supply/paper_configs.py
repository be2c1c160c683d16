"""The paper's models: which pipeline each is and the configurations that its parts were published with.

These are facts of the checkpoints' config.json files; what equals a class's own default is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel

from baselines import bk_sdm
from dipgo.errors import unknown

Config = dict[str, Any]
Parts = dict[str, tuple[type, Config]]  # by the names of the pipeline's arguments

SD15_UNET: Config = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
SD21_UNET: Config = {
    **SD15_UNET,
    "sample_size": 96,
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
    "upcast_attention": True,
}
SDXL_LCM_UNET: Config = {
    **SD15_UNET,
    "sample_size": 128,
    "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
    "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "time_cond_proj_dim": 256,
}
DIT_TRANSFORMER: Config = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 28,
    "sample_size": 32,
    "patch_size": 2,
    "num_embeds_ada_norm": 1000,
}
PIXART_TRANSFORMER: Config = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 28,
    "sample_size": 128,
    "patch_size": 2,
    "cross_attention_dim": 1152,
    "caption_channels": 4096,
    "interpolation_scale": 2,
}

CLIP: Config = {"vocab_size": 49408, "max_position_embeddings": 77, "bos_token_id": 0, "eos_token_id": 2}
CLIP_L: Config = {
    **CLIP,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}
CLIP_H: Config = {  # the first 23 of its 24 layers
    **CLIP,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "projection_dim": 512,
    "hidden_act": "gelu",
}
CLIP_BIG_G: Config = {
    **CLIP,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
T5_XXL: Config = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}

VAE: Config = {  # sample_size, which only tiling reads, is left out
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
}
SDXL_VAE: Config = {**VAE, "scaling_factor": 0.13025, "force_upcast": True}

SD_NOISE: Config = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
LINEAR_NOISE: Config = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
}

SD15: Parts = {
    "unet": (UNet2DConditionModel, SD15_UNET),
    "text_encoder": (CLIPTextModel, CLIP_L),
    "vae": (AutoencoderKL, VAE),
    "scheduler": (PNDMScheduler, {**SD_NOISE, "skip_prk_steps": True}),
}
SD21: Parts = {
    "unet": (UNet2DConditionModel, SD21_UNET),
    "text_encoder": (CLIPTextModel, CLIP_H),
    "vae": (AutoencoderKL, VAE),
    "scheduler": (DDIMScheduler, {**SD_NOISE, "clip_sample": False, "prediction_type": "v_prediction"}),
}
SDXL_LCM: Parts = {
    "unet": (UNet2DConditionModel, SDXL_LCM_UNET),
    "text_encoder": (CLIPTextModel, CLIP_L),
    "text_encoder_2": (CLIPTextModelWithProjection, CLIP_BIG_G),
    "vae": (AutoencoderKL, SDXL_VAE),
    "scheduler": (EulerDiscreteScheduler, {**SD_NOISE, "clip_sample": False, "timestep_spacing": "leading"}),
}
DIT_XL_2: Parts = {
    "transformer": (DiTTransformer2DModel, DIT_TRANSFORMER),
    "vae": (AutoencoderKL, VAE),
    "scheduler": (DDIMScheduler, {**LINEAR_NOISE, "clip_sample": False}),
}
PIXART_ALPHA: Parts = {
    "transformer": (PixArtTransformer2DModel, PIXART_TRANSFORMER),
    "text_encoder": (T5EncoderModel, T5_XXL),
    "vae": (AutoencoderKL, VAE),
    "scheduler": (DPMSolverMultistepScheduler, LINEAR_NOISE),
}


@dataclass(frozen=True)
class PaperModel:
    """A pipeline's class and its parts, each with the configuration that its checkpoint was published with.

    `branches` is how many guidance branches a step of the pipeline runs. `bk_sdm` names the variant that the U-Net is
    cut down to.
    """

    pipeline: type[DiffusionPipeline]
    parts: Parts
    branches: int = 2
    bk_sdm: str = ""

    def denoiser(self, **changes: Any) -> nn.Module:
        """The U-Net or transformer alone, with `changes` to its configuration."""
        kind, config = self.parts.get("unet") or self.parts["transformer"]
        denoiser = kind(**{**config, **changes})
        return bk_sdm.build(denoiser, self.bk_sdm) if self.bk_sdm else denoiser


PAPER_MODELS: dict[str, PaperModel] = {
    "sd15": PaperModel(StableDiffusionPipeline, SD15),
    "bk-sdm-base": PaperModel(StableDiffusionPipeline, SD15, bk_sdm="base"),
    "bk-sdm-small": PaperModel(StableDiffusionPipeline, SD15, bk_sdm="small"),
    "bk-sdm-tiny": PaperModel(StableDiffusionPipeline, SD15, bk_sdm="tiny"),
    "sd21": PaperModel(StableDiffusionPipeline, SD21),
    "sdxl-lcm": PaperModel(StableDiffusionXLPipeline, SDXL_LCM, branches=1),
    "dit-xl-2": PaperModel(DiTPipeline, DIT_XL_2),
    "pixart-alpha": PaperModel(PixArtAlphaPipeline, PIXART_ALPHA),
}


def paper_model(name: str) -> PaperModel:
    """A model of the paper; raises `DipgoError` for an unknown name."""
    if name not in PAPER_MODELS:
        raise unknown("model of the paper", name, PAPER_MODELS)
    return PAPER_MODELS[name]
