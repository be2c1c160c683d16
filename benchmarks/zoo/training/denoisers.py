"""The denoisers, trained on from the live zoo's weights: text encoders and latents stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, DiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import compute_snr
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from benchmarks.zoo.training.common import CHECKPOINTS, ZOO, batches, write_weights
from benchmarks.zoo.training.decoder import latents
from benchmarks.zoo.training.drawing import WAYS, measure_drawn
from benchmarks.zoo.training.loop import Card, Training, load
from benchmarks.zoo.training.pictures import class_names, load_pictures
from dipgo import denoiser_of, family_of

BATCH, DROPOUT, SNR_CAP = 64, 0.1, 5.0
Conditions = Mapping[str, Any]


def live_pipeline(name: str) -> Any:
    """The pipeline that users load, in float32."""
    return DiffusionPipeline.from_pretrained(ZOO / name, dtype=torch.float32)


def live_denoiser(name: str) -> nn.Module:
    """The denoiser that users load, ready to be trained."""
    return denoiser_of(live_pipeline(name)).requires_grad_(True).to(memory_format=torch.channels_last)


def with_denoiser(pipeline: Any, denoiser: nn.Module) -> Any:
    """The pipeline with another denoiser in the place of its own."""
    part = "unet" if hasattr(pipeline, "unet") else "transformer"
    pipeline.register_modules(**{part: denoiser})
    return pipeline


@dataclass(frozen=True)
class Captioned:
    """The pictures that the generators learn."""

    latents: Tensor
    """[n, 8, 8, 8]."""
    captions: list[str]
    classes: list[str]
    """The class's name of every picture."""


def captioned(work: Path) -> Captioned:
    data = load_pictures(work)
    chosen, numbers = data.trained(), data.class_numbers()
    classes = [class_names()[numbers[i]] for i in chosen]
    return Captioned(latents(work)[chosen], [data.captions[i] for i in chosen], classes)


class Conditioner:
    """The denoiser's keyword arguments for every picture, encoded once."""

    def __init__(self, pipeline: Any, data: Captioned) -> None:
        texts = data.classes if hasattr(pipeline, "labels") else data.captions
        condition = family_of(denoiser_of(pipeline)).condition
        with torch.no_grad():
            self.known = condition(pipeline, texts, 1.0)
            both = condition(pipeline, texts[:1], 2.0)
        self.nothing = tree_map(lambda rows: rows[:1] if isinstance(rows, Tensor) else rows, both)

    def __call__(self, picked: Tensor, dropped: Tensor) -> Conditions:
        """Returns the arguments of the rows ``picked`` [n], without condition where ``dropped`` [n] is true."""

        def choose(known: Any, nothing: Any) -> Any:
            if not isinstance(known, Tensor):
                return known
            return torch.where(dropped.view(-1, *[1] * (known.dim() - 1)), nothing, known[picked])

        return tree_map(choose, self.known, self.nothing)


class Noising:
    """The forward process of a model's scheduler, with timesteps drawn in layers and min-SNR weights."""

    def __init__(self, scheduler_config: Mapping[str, Any]) -> None:
        self.scheduler = DDPMScheduler.from_config(scheduler_config)
        self.velocity = self.scheduler.config.prediction_type == "v_prediction"

    def draw(self, clean: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns noisy latents, timesteps [n], what is to be predicted, and weights [n]: min(SNR, cap) on the error of
        the clean latents, whichever quantity is predicted."""
        n = len(clean)
        steps = ((torch.randperm(n) + torch.rand(n)) * (len(self.scheduler.alphas_cumprod) / n)).long()
        noise = torch.randn_like(clean)
        noisy = self.scheduler.add_noise(clean, noise, steps)
        snr = compute_snr(self.scheduler, steps)
        if self.velocity:
            target = self.scheduler.get_velocity(clean, noise, steps)
            return noisy, steps, target, snr.clamp(max=SNR_CAP) / (snr + 1)
        return noisy, steps, noise, snr.clamp(max=SNR_CAP) / snr


def weighted(weight: Tensor, predicted: Tensor, target: Tensor) -> Tensor:
    """Mean over the pictures of their weight [n] times their mean squared error."""
    return (weight * (predicted - target).square().mean((1, 2, 3))).mean()


def objective(name: str, work: Path, model: nn.Module) -> Callable[[float], Tensor]:
    """The weighted error of the predicted noise or velocity; 10 % of the captions or classes are dropped."""
    data, pipeline = captioned(work), with_denoiser(live_pipeline(name), model)
    conditioner, noising = Conditioner(pipeline, data), Noising(pipeline.scheduler.config)
    rows = batches(len(data.captions), BATCH)

    def loss(progress: float) -> Tensor:
        picked = next(rows)
        noisy, steps, target, weight = noising.draw(data.latents[picked])
        condition = conditioner(picked, torch.rand(BATCH) < DROPOUT)
        return weighted(weight, model(noisy, timestep=steps, **condition).sample, target)

    return loss


def measure(name: str, work: Path, model: nn.Module) -> Card:
    """What the newest judge says of pictures that the model draws and the newest decoder decodes."""
    return measure_drawn(with_denoiser(live_pipeline(name), model), WAYS[name])


def install(name: str, work: Path, model: nn.Module, card: Card) -> None:
    """Writes the weights into the live folder; configuration, scheduler and the other parts stay as they are."""
    part = "unet" if isinstance(model, UNet2DConditionModel) else "transformer"
    write_weights(ZOO / name / part / "diffusion_pytorch_model.safetensors", model.state_dict())


def training(name: str, minutes: float, rate: float) -> Training:
    parts = (partial(live_denoiser, name), partial(objective, name), partial(measure, name), partial(install, name))
    return Training(name, minutes, rate, *parts)


SD = training("emoji-sd", 120, 6e-4)
PIXART = training("emoji-pixart", 120, 1e-3)
DIT = training("emoji-dit", 60, 1e-3)
SD2 = training("emoji-sd2", 60, 6e-4)


def newest(training: Training, checkpoints: Path = CHECKPOINTS) -> nn.Module:
    """The model with its newest weights: the checkpoint's or, where there is none, the live ones; frozen."""
    return load(training, checkpoints)[0].eval().requires_grad_(False)
