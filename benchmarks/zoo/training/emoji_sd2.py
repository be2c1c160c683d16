"""Trains emoji-sd2: Stable Diffusion 2.1's manner (v-prediction, linear projections, heads by level), warm-started
from emoji-sd, over its frozen text encoder.

``--export`` writes the averaged weights of the last checkpoint as a diffusers folder.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler, UNet2DConditionModel
from torch import Tensor

from benchmarks.zoo.training.diffusion import (
    DROPOUT,
    NOISE,
    SEED,
    TEACHER,
    Objective,
    batches,
    captioned,
    command,
    encode,
    fit,
    publish,
    shared_parts,
    stable_diffusion,
    trained,
    warm_start,
)

log = logging.getLogger(__name__)

NAME, BATCH, RATE = "emoji-sd2", 64, 1e-3
WIDTHS = (32, 64, 96, 64)


def build() -> tuple[UNet2DConditionModel, float]:
    """The warm-started U-Net and the share of its weights that come from emoji-sd."""
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=8,
        block_out_channels=WIDTHS,
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        attention_head_dim=tuple(width // 8 for width in WIDTHS),  # diffusers reads this as the number of heads
        cross_attention_dim=96,
        norm_num_groups=8,
        use_linear_projection=True,
    )
    share = warm_start(unet, UNet2DConditionModel.from_pretrained(TEACHER / "unet").state_dict())
    return unet.to(memory_format=torch.channels_last), share


def train(work: Path, minutes: float) -> None:
    torch.manual_seed(SEED)
    data, parts = captioned(work), shared_parts()
    texts, empty = encode(parts, data.captions), encode(parts, [""])
    unet, share = build()
    log.info("%.1f %% of the weights come from emoji-sd", 100 * share)
    objective, rows = Objective("v_prediction"), batches(len(texts), BATCH)

    def loss() -> Tensor:
        picked = next(rows)
        text = torch.where(torch.rand(BATCH, 1, 1) < DROPOUT, empty, texts[picked])
        latents = data.latents[picked].contiguous(memory_format=torch.channels_last)
        return objective(latents, lambda noisy, steps: unet(noisy, steps, encoder_hidden_states=text).sample)

    fit(work, NAME, minutes, unet, loss, rate=RATE)


def export(work: Path, target: Path) -> None:
    unet, share = build()
    card = trained(work, NAME, unet) | {"batch": BATCH, "share_of_weights_from_emoji_sd": round(share, 3)}
    pipeline = stable_diffusion(
        unet=unet,
        scheduler=DPMSolverMultistepScheduler(
            **NOISE, prediction_type="v_prediction", solver_order=2, timestep_spacing="trailing"
        ),
        **shared_parts(),
    )
    publish(work, pipeline, card, target, ("vae", "text_encoder", "tokenizer"))


if __name__ == "__main__":
    command(__doc__, NAME, 15, train, export)
