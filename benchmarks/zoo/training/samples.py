"""The contact sheets of the data card: dense samples below the real pictures of their captions.

``samples.png`` shows emoji-sd, ``families.png`` the models of the zoo's second part; ``--work`` holds the pictures.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw

from benchmarks.models.model import load as load_model
from benchmarks.zoo.training.common import ZOO, arguments
from benchmarks.zoo.training.emoji_dit import class_of_caption
from benchmarks.zoo.training.pictures import Data, load
from dipgo import Sampler, initial_noise, rollout

SEEN = (
    "sunflower, twitter",
    "red apple, twitter",
    "cat face, twitter",
    "strawberry, fluent",
    "butterfly, google",
    "cactus, twitter",
    "snail, fluent",
    "hot dog, twitter",
)
HELD_OUT = (
    "violin, fluent",
    "rocket, fluent",
    "bicycle, twitter",
    "guitar, fluent",
    "tulip, twitter",
    "crown, google",
    "elephant, google",
    "taco, twitter",
)
CLASSES = (
    "heart",
    "face-smiling",
    "time",
    "animal-mammal",
    "animal-bird",
    "animal-marine",
    "plant-flower",
    "plant-other",
    "food-fruit",
    "food-prepared",
    "drink",
    "clothing",
    "transport-ground",
    "sky & weather",
    "place-building",
    "sport",
)


@dataclass(frozen=True)
class Way:
    """How a model is sampled."""

    model: str
    sampler: str
    steps: int
    guidance: float

    @property
    def title(self) -> str:
        return f"{self.model} ({self.sampler} {self.steps})"


SD = Way("emoji-sd", "plms", 50, 4.0)
CAPTIONED = (
    Way("emoji-bk-base", "plms", 50, 4.0),
    Way("emoji-bk-small", "plms", 50, 4.0),
    Way("emoji-sd2", "dpm", 50, 4.0),
    Way("emoji-xl-lcm", "lcm", 4, 4.0),
    Way("emoji-pixart", "dpm", 20, 4.0),
)
DIT = Way("emoji-dit", "ddim", 250, 2.0)


@torch.no_grad()
def sample(way: Way, captions: Sequence[str]) -> np.ndarray:
    """uint8 [n, 64, 64, 3]; caption i starts from the noise of seed i."""
    model, seeds = load_model(way.model), range(len(captions))
    sampler = Sampler(way.sampler, model.scheduler_config, way.steps)
    noise, conditioning = initial_noise(seeds, model.latent_shape), model.condition(captions, way.guidance)
    latents = rollout(model.denoiser, sampler, noise, conditioning, model.branch_guidance(way.guidance), seeds)
    images = model.decode(latents).clamp(0, 1).permute(0, 2, 3, 1)
    return (images * 255).round().to(torch.uint8).numpy()


@dataclass(frozen=True)
class Band:
    """Captions, above rows of pictures [n, 64, 64, 3] with their titles."""

    captions: Sequence[str]
    rows: Sequence[tuple[str, np.ndarray]]


def sheet(bands: Sequence[Band], cell: int) -> Image.Image:
    """All bands below each other, pictures in cells of ``cell`` pixels."""
    text = 14
    height = sum(text + len(band.rows) * (cell + text) for band in bands)
    canvas = Image.new("RGB", (cell * max(len(band.captions) for band in bands), height), "white")
    draw, top = ImageDraw.Draw(canvas), 0
    for band in bands:
        for column, caption in enumerate(band.captions):
            draw.text((column * cell + 2, top), caption.replace(", ", "/")[: cell // 6], fill="grey")
        top += text
        for title, pictures in band.rows:
            draw.text((2, top), title, fill="black")
            top += text
            for column, pixels in enumerate(pictures):
                picture = Image.fromarray(pixels).resize((cell - 4, cell - 4), Image.Resampling.BICUBIC)
                canvas.paste(picture, (column * cell + 2, top))
            top += cell
    return canvas


def write(canvas: Image.Image, name: str) -> None:
    canvas.quantize(256).save(ZOO / f"{name}.tmp.png", optimize=True)
    os.replace(ZOO / f"{name}.tmp.png", ZOO / f"{name}.png")


def of_class(data: Data, name: str) -> np.ndarray:
    """The first trained picture of a class."""
    of_caption = class_of_caption()
    return data.pixels[next(i for i in data.sets["train"] if of_caption[data.captions[i]] == name)]


def main() -> None:
    data = load(arguments(__doc__).work)
    real = {captions: data.pixels[[data.captions.index(c) for c in captions]] for captions in (SEEN, HELD_OUT)}
    bands = [
        Band(captions, [(f"{kind}: real", pictures), (SD.title, sample(SD, captions))])
        for (captions, pictures), kind in zip(real.items(), ("seen", "held-out"), strict=True)
    ]
    write(sheet(bands, cell=96), "samples")
    captions = SEEN + HELD_OUT
    rows = [("real (the right half held out)", np.concatenate(list(real.values())))]
    rows += [(way.title, sample(way, captions)) for way in CAPTIONED]
    classes = [("real, one of the class", np.stack([of_class(data, name) for name in CLASSES]))]
    classes += [(DIT.title, sample(DIT, CLASSES))]
    write(sheet([Band(captions, rows), Band(CLASSES, classes)], cell=54), "families")


if __name__ == "__main__":
    main()
