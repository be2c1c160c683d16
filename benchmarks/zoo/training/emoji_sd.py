"""Trains emoji-sd: a latent diffusion model of Stable Diffusion 1.5's shape, with its text encoder.

``--export`` writes the averaged weights of the last checkpoint as a diffusers folder into ``benchmarks/zoo``
instead of training; a training that was interrupted goes on from its checkpoint.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from benchmarks.zoo.training.diffusion import (
    DROPOUT,
    NOISE,
    SEED,
    Objective,
    captioned,
    command,
    fit,
    publish,
    stable_diffusion,
    trained,
)
from benchmarks.zoo.training.pictures import load
from benchmarks.zoo.training.tokens import CONTEXT, train_tokenizer

NAME, BATCH, RATE = "emoji-sd", 64, 1e-3  # batch: a process


def build(tokenizer: CLIPTokenizer) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Untrained U-Net (Stable Diffusion 1.5's blocks, narrow) and text encoder."""
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=8,
        block_out_channels=(32, 64, 96, 128),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        attention_head_dim=8,
        cross_attention_dim=96,
        norm_num_groups=8,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=384,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    return unet, text


def train(work: Path, minutes: float) -> None:
    torch.manual_seed(SEED)
    data = captioned(work)
    tokenizer = train_tokenizer(load(work).captions)
    tokens, empty = (
        tokenizer(captions, padding="max_length", max_length=CONTEXT, return_tensors="pt").input_ids
        for captions in (data.captions, [""])
    )
    models, objective = nn.ModuleList(build(tokenizer)), Objective()
    unet, text = models

    def loss() -> Tensor:
        picked = torch.randint(len(tokens), (BATCH,))
        captions = torch.where(torch.rand(BATCH, 1) < DROPOUT, empty, tokens[picked])

        def predict(noisy: Tensor, steps: Tensor) -> Tensor:
            return unet(noisy, steps, encoder_hidden_states=text(captions).last_hidden_state).sample

        return objective(data.latents[picked], predict)

    fit(work, NAME, minutes, models, loss, rate=RATE)


def export(work: Path, target: Path) -> None:
    tokenizer = train_tokenizer(load(work).captions)
    unet, text = models = nn.ModuleList(build(tokenizer))
    card = trained(work, NAME, models) | {
        "batch": BATCH,
        "parameters_unet": sum(p.numel() for p in unet.parameters()),
        "parameters_text_encoder": sum(p.numel() for p in text.parameters()),
    }
    pipeline = stable_diffusion(
        vae=AutoencoderKL.from_pretrained(work / "vae"),
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=PNDMScheduler(**NOISE, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1),
    )
    publish(work, pipeline, card, target)


if __name__ == "__main__":
    command(__doc__, NAME, 75, train, export)
