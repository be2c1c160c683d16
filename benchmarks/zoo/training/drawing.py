"""How every model is sampled for the contact sheets and for the numbers at the end of a training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.models.model import Model, prepared
from benchmarks.supply import zoo
from benchmarks.zoo.training import decoder, judge
from benchmarks.zoo.training.loop import Card, load
from benchmarks.zoo.training.pictures import class_names
from dipgo import Sampler, rollout

MEASURED = 100  # prompts a set


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


WAYS = {
    way.model: way
    for way in (
        Way("emoji-sd", "dpm", 25, 4.0),
        Way("emoji-bk-base", "dpm", 25, 4.0),
        Way("emoji-bk-small", "dpm", 25, 4.0),
        Way("emoji-sd2", "dpm", 25, 4.0),
        Way("emoji-xl", "dpm", 25, 4.0),
        Way("emoji-xl-lcm", "lcm", 4, 4.0),
        Way("emoji-pixart", "dpm", 20, 4.0),
        Way("emoji-dit", "ddim", 50, 2.0),
    )
}


@torch.no_grad()
def draw(model: Model, way: Way, captions: Sequence[str], part: int = 50) -> Tensor:
    """Returns pictures [n, 3, 64, 64] in [0, 1]; caption i starts from the noise of seed i."""
    sampler, drawn = Sampler(way.sampler, model.scheduler_config, way.steps), []
    for start in range(0, len(captions), part):
        seeds = range(start, min(start + part, len(captions)))
        inputs = model.inputs_of([captions[i] for i in seeds], seeds, way.guidance)
        drawn.append(model.decode(rollout(model.diffusion(sampler, way.guidance), inputs)).clamp(0, 1))
    return torch.cat(drawn)


def with_newest_decoder(pipeline: Any) -> Any:
    """The pipeline with the weights of the newest decoder in its autoencoder."""
    pipeline.vae.load_state_dict(load(decoder.TRAINING)[0].state_dict(), strict=False)
    return pipeline


@torch.no_grad()
def measure_drawn(pipeline: Any, way: Way) -> Card:
    """Draws 100 prompts of each set (or 100 classes) and asks the newest judge: retrieval among all of a set's
    captions that were drawn, or the share of pictures that it puts into their class."""
    model, critic = prepared(way.model, with_newest_decoder(pipeline)), judge.newest()
    if hasattr(pipeline, "labels"):
        names = [prompt.caption for prompt in zoo.prompts("classes", way.model)][:MEASURED]
        found = (features(critic, draw(model, way, names)) @ critic.prototypes().T).argmax(1)
        right = [class_names()[number] == name for number, name in zip(found.tolist(), names, strict=True)]
        return {"class_accuracy": round(sum(right) / len(right), 4)}
    card = {}
    for key in ("seen", "held-out"):
        captions = [prompt.caption for prompt in zoo.prompts(key)][:MEASURED]
        texts = critic.clip.encode_text(judge.tokenize(captions), normalize=True)
        card[f"top1_of_100_{key}"] = round(judge.retrieval(features(critic, draw(model, way, captions)), texts), 4)
    return card


def features(critic: judge.Judge, pictures: Tensor) -> Tensor:
    """The judge's unit features [n, 128] of pictures in [0, 1], rounded to 255 grey levels as files are."""
    return judge.image_features(critic, (pictures * 255).round() / 127.5 - 1)
