"""Tiny pipelines with random weights, one for each kind of conditioning."""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any

import diffusers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from dipgo import families
from dipgo.families import unet as unets
from tests.conftest import SD_SCHEDULER

CLASSES = ["cat face", "dog face", "fruit"]
TOKENS = 20


def _text(kind: type = CLIPTextModel) -> tuple[Any, Any]:
    letters = string.ascii_lowercase + ","
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=TOKENS)
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        projection_dim=8,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
    )
    return tokenizer, kind(config)


def tiny_vae() -> diffusers.AutoencoderKL:
    shape = {"block_out_channels": (4, 4), "layers_per_block": 1, "norm_num_groups": 2, "latent_channels": 4}
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return diffusers.AutoencoderKL(**shape, **kinds, sample_size=16, scaling_factor=1.0)


def stable_diffusion() -> Any:
    tokenizer, text_encoder = _text()
    return diffusers.StableDiffusionPipeline(
        vae=tiny_vae(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unets.SD15.tiny(),
        scheduler=diffusers.DDIMScheduler(**SD_SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl_lcm() -> Any:
    tokenizer, text_encoder = _text(CLIPTextModelWithProjection)
    shape = {name: value for name, value in unets.SDXL.tiny().config.items() if not name.startswith("_")}
    return diffusers.StableDiffusionXLPipeline(
        vae=tiny_vae(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=text_encoder,
        tokenizer_2=tokenizer,
        unet=diffusers.UNet2DConditionModel(**{**shape, "time_cond_proj_dim": 16}),
        scheduler=diffusers.LCMScheduler(beta_schedule="scaled_linear"),
        add_watermarker=False,
    )


def dit() -> Any:
    names = {str(label): name for label, name in enumerate(CLASSES)}
    pipeline = diffusers.DiTPipeline(
        transformer=families.DIT.tiny(),
        vae=tiny_vae(),
        scheduler=diffusers.DDIMScheduler(**SD_SCHEDULER),
        id2label=names,
    )
    pipeline.register_to_config(id2label=names)  # DiTPipeline itself would not save it
    return pipeline


def pixart() -> Any:
    tokenizer, text_encoder = _text()
    return diffusers.PixArtAlphaPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=tiny_vae(),
        transformer=families.PIXART.tiny(),
        scheduler=diffusers.DPMSolverMultistepScheduler(beta_schedule="scaled_linear"),
    )


PIPELINES: dict[str, Callable[[], Any]] = {
    "plms": stable_diffusion,
    "lcm": sdxl_lcm,
    "ddim": dit,
    "dpm": pixart,
}
"""By the sampler that the suite runs them with."""
