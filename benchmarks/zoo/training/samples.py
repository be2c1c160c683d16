"""The contact sheet of the data card: dense samples of emoji-sd below the real pictures of their captions."""

from __future__ import annotations

import os

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw
from torch import Tensor
from tqdm import tqdm

from benchmarks.zoo.training.common import ZOO, arguments
from benchmarks.zoo.training.pictures import Data, load

STEPS, BATCH, GUIDANCE = 50, 32, 4.0
SHOWN = {
    "seen": (
        "sunflower, twitter",
        "red apple, twitter",
        "cat face, twitter",
        "strawberry, fluent",
        "butterfly, google",
        "cactus, twitter",
        "snail, fluent",
        "hot dog, twitter",
    ),
    "held-out": (
        "violin, fluent",
        "rocket, fluent",
        "bicycle, twitter",
        "guitar, fluent",
        "tulip, twitter",
        "crown, google",
        "elephant, google",
        "taco, twitter",
    ),
}


def noise(index: int) -> Tensor:
    """Latent noise [1, 8, 8, 8] of one prompt index."""
    return torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(index))


def sample(pipeline: StableDiffusionPipeline, captions: list[str], guidance: float) -> np.ndarray:
    """uint8 [n, 64, 64, 3] by PLMS; caption i starts from ``noise(i)``."""
    found = []
    for start in tqdm(range(0, len(captions), BATCH), desc=f"guidance {guidance}"):
        part = captions[start : start + BATCH]
        latents = torch.cat([noise(start + i) for i in range(len(part))])
        out = pipeline(
            part,
            latents=latents,
            guidance_scale=guidance,
            num_inference_steps=STEPS,
            output_type="np",
            height=64,
            width=64,
        )
        found.append((out.images * 255).round().astype(np.uint8))
    return np.concatenate(found)


def sheet(pipeline: StableDiffusionPipeline, data: Data, guidance: float) -> Image.Image:
    """Two bands (seen, held-out), each a row of real pictures above a row of samples."""
    cell, text, n = 96, 14, len(SHOWN["seen"])
    canvas = Image.new("RGB", (cell * n, len(SHOWN) * (2 * cell + 2 * text)), "white")
    draw = ImageDraw.Draw(canvas)
    for band, (key, captions) in enumerate(SHOWN.items()):
        top = band * (2 * cell + 2 * text)
        draw.text((2, top), f"{key}: real above, emoji-sd below (guidance {guidance:g})", fill="black")
        drawn = sample(pipeline, list(captions), guidance)
        for column, caption in enumerate(captions):
            left = column * cell
            draw.text((left + 2, top + text), caption.replace(", ", " / ")[:16], fill="grey")
            real = data.pixels[data.captions.index(caption)]
            for row, pixels in enumerate((real, drawn[column])):
                picture = Image.fromarray(pixels).resize((cell - 4, cell - 4), Image.Resampling.BICUBIC)
                canvas.paste(picture, (left + 2, top + 2 * text + row * cell))
    return canvas


def main() -> None:
    args = arguments(__doc__)
    data = load(args.work)
    pipeline = StableDiffusionPipeline.from_pretrained(ZOO / "emoji-sd", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    sheet(pipeline, data, GUIDANCE).quantize(256).save(ZOO / "samples.tmp.png", optimize=True)
    os.replace(ZOO / "samples.tmp.png", ZOO / "samples.png")


if __name__ == "__main__":
    main()
