"""The contact sheets of the data card: dense samples below the real pictures of their captions."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from benchmarks.models.model import prepared
from benchmarks.zoo.training import mmdit
from benchmarks.zoo.training.denoisers import DIT, SD, live_pipeline, newest, with_denoiser
from benchmarks.zoo.training.drawing import WAYS, draw, with_newest_decoder
from benchmarks.zoo.training.loop import Training
from benchmarks.zoo.training.pictures import Data, class_names, load_pictures
from dipgo.files import write_bytes

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


def to_pixels(pictures: Tensor) -> np.ndarray:
    """uint8 [n, 64, 64, 3] of pictures [n, 3, 64, 64] in [0, 1]."""
    return (pictures.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()


def row(training: Training, captions: Sequence[str]) -> tuple[str, np.ndarray]:
    """A title and pictures drawn with the newest weights of the denoiser and of the decoder."""
    name, model = training.name, newest(training)
    if name == mmdit.NAME:
        pictures = mmdit.draw(with_newest_decoder(mmdit.pipeline_of(model)), list(captions))
        return f"{name} (flow 20)", to_pixels(pictures)
    pipeline = with_newest_decoder(with_denoiser(live_pipeline(name), model))
    return WAYS[name].title, to_pixels(draw(prepared(name, pipeline), WAYS[name], captions))


def of_class(data: Data, name: str) -> np.ndarray:
    """The first trained picture of a class."""
    numbers = data.class_numbers()
    return data.pixels[next(i for i in data.sets["train"] if numbers[i] == class_names().index(name))]


def write_sheets(work: Path, folder: Path, others: Sequence[Training]) -> None:
    """Writes samples.png (emoji-sd) and families.png (the other captioned models, and emoji-dit) into ``folder``."""
    data = load_pictures(work)
    real = {captions: data.pixels[[data.captions.index(c) for c in captions]] for captions in (SEEN, HELD_OUT)}
    bands = [
        Band(captions, [(f"{kind}: real", pictures), row(SD, captions)])
        for (captions, pictures), kind in zip(real.items(), ("seen", "held-out"), strict=True)
    ]
    captions = SEEN + HELD_OUT
    rows = [("real (the right half held out)", np.concatenate(list(real.values())))]
    rows += [row(training, captions) for training in others]
    classes = [("real, one of the class", np.stack([of_class(data, name) for name in CLASSES])), row(DIT, CLASSES)]
    sheets = {"samples": sheet(bands, cell=96), "families": sheet([Band(captions, rows), Band(CLASSES, classes)], 54)}
    for name, canvas in sheets.items():
        canvas.quantize(256).save(content := io.BytesIO(), "PNG", optimize=True)
        write_bytes(folder / f"{name}.png", content.getvalue())
