"""Trains emoji-pixart: a text-conditional PixArt-alpha transformer of 28 blocks over emoji-sd's text encoder.

``--export`` writes the averaged weights of the last checkpoint as a diffusers folder.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel
from torch import Tensor, nn

from benchmarks.zoo.training.diffusion import (
    DROPOUT,
    NOISE,
    Objective,
    batches,
    captioned,
    command,
    fit,
    publish,
    shared_parts,
    trained,
)
from benchmarks.zoo.training.tokens import CONTEXT

NAME, BATCH, RATE, SEED = "emoji-pixart", 64, 2e-3, 0


def build() -> PixArtTransformer2DModel:
    """An untrained transformer; cross-attention and output start at zero, self-attention and feed-forward gates
    small."""
    model = PixArtTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=8,
        out_channels=8,
        num_layers=28,
        sample_size=8,
        patch_size=2,
        cross_attention_dim=64,
        caption_channels=96,
        use_additional_conditions=False,
    )
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.normal_(model.adaln_single.linear.weight, std=0.02)
    for block in model.transformer_blocks:
        nn.init.zeros_(block.attn2.to_out[0].weight)
    nn.init.zeros_(model.proj_out.weight)
    return model


def train(work: Path, minutes: float) -> None:
    torch.manual_seed(SEED)
    data, parts = captioned(work), shared_parts()

    @torch.no_grad()
    def encode(captions: list[str]) -> tuple[Tensor, Tensor]:
        """Last hidden states [n, 20, 96] and masks [n, 20], as the pipeline makes them."""
        found = parts["tokenizer"](captions, padding="max_length", max_length=CONTEXT, return_tensors="pt")
        return parts["text_encoder"](found.input_ids, attention_mask=found.attention_mask)[0], found.attention_mask

    (texts, masks), (empty, empty_mask) = encode(data.captions), encode([""])
    model, objective, rows = build(), Objective(), batches(len(texts), BATCH)

    def loss() -> Tensor:
        picked = next(rows)
        dropped = torch.rand(BATCH) < DROPOUT
        text = torch.where(dropped[:, None, None], empty, texts[picked])
        mask = torch.where(dropped[:, None], empty_mask, masks[picked])

        def predict(noisy: Tensor, steps: Tensor) -> Tensor:
            return model(noisy, text, steps, encoder_attention_mask=mask).sample

        return objective(data.latents[picked], predict)

    fit(work, NAME, minutes, model, loss, rate=RATE)


def export(work: Path, target: Path) -> None:
    model = build()
    card = trained(work, NAME, model) | {"batch": BATCH}
    scheduler = DPMSolverMultistepScheduler(**NOISE, solver_order=2, timestep_spacing="trailing")
    pipeline = PixArtAlphaPipeline(transformer=model, scheduler=scheduler, **shared_parts())
    publish(work, pipeline, card, target, ("vae", "text_encoder", "tokenizer"))


if __name__ == "__main__":
    command(__doc__, NAME, 53, train, export)
