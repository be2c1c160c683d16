"""What the trainings of the zoo's diffusion models share: data, objective, the resumable loop and the export."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, StableDiffusionPipeline
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from benchmarks.zoo.training.common import (
    ZOO,
    Average,
    Clock,
    arguments,
    rank,
    save_atomically,
    synchronise,
    write_card,
)
from benchmarks.zoo.training.pictures import load

log = logging.getLogger(__name__)

SEED, WARM_UP, DROPOUT, SNR_CAP, CHECKPOINT_SECONDS = 0, 200, 0.1, 5.0, 240
NOISE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
TEACHER = ZOO / "emoji-sd"


@dataclass(frozen=True)
class Captioned:
    """Latents [n, 8, 8, 8] of the generator's pictures with their captions."""

    latents: Tensor
    captions: list[str]


def captioned(work: Path) -> Captioned:
    """The sets `train` and `seen`; the held-out pictures are in no training."""
    data = load(work)
    chosen = torch.cat([torch.from_numpy(data.sets[key]) for key in ("train", "seen")])
    latents = torch.load(work / "latents.pt", weights_only=True)[chosen]
    return Captioned(latents, [data.captions[i] for i in chosen])


def shared_parts() -> dict[str, nn.Module]:
    """emoji-sd's autoencoder, tokenizer and frozen text encoder."""
    return {
        "vae": AutoencoderKL.from_pretrained(TEACHER / "vae").eval(),
        "tokenizer": CLIPTokenizer.from_pretrained(TEACHER / "tokenizer"),
        "text_encoder": CLIPTextModel.from_pretrained(TEACHER / "text_encoder").eval().requires_grad_(False),
    }


@torch.no_grad()
def encode(parts: dict[str, Any], captions: list[str]) -> Tensor:
    """Last hidden states [n, 20, 96] of the text encoder, as `StableDiffusionPipeline` makes them."""
    length = parts["tokenizer"].model_max_length
    tokens = parts["tokenizer"](captions, padding="max_length", max_length=length, return_tensors="pt").input_ids
    return parts["text_encoder"](tokens)[0]


def warm_start(model: nn.Module, weights: dict[str, Tensor], origin: Callable[[str], str] = str) -> float:
    """Copies into ``model`` every weight whose ``origin`` name is in ``weights`` with the same shape, 1 x 1
    convolutions counting as linear layers. What stays fresh at the end of a residual branch is set to zero, so that
    the branch adds nothing yet. Returns the share of the parameters taken over."""
    taken, own = 0, model.state_dict()
    for key, value in own.items():
        source = weights.get(origin(key))
        if source is not None and source.squeeze().shape == value.squeeze().shape:
            value.copy_(source.reshape(value.shape))
            taken += value.numel()
        elif key.rpartition(".")[0].endswith(("to_out.0", "net.2", "proj_out", "conv2", "add_embedding.linear_2")):
            value.zero_()
    return taken / sum(value.numel() for value in own.values())


class Objective:
    """Mean squared error of the predicted noise or velocity at stratified timesteps, weighted as min(SNR, cap)
    on the clean latents' error."""

    def __init__(self, prediction: str = "epsilon") -> None:
        self.noise = DDPMScheduler(**NOISE, prediction_type=prediction)
        self.velocity = prediction == "v_prediction"
        self.snr = self.noise.alphas_cumprod / (1 - self.noise.alphas_cumprod)

    def draw(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Noisy latents, timesteps [n], the target and the weights [n]."""
        n = len(latents)
        steps = ((torch.randperm(n) + torch.rand(n)) * (len(self.snr) / n)).long()
        noise = torch.randn_like(latents)
        noisy = self.noise.add_noise(latents, noise, steps)
        snr = self.snr[steps]
        if self.velocity:
            return noisy, steps, self.noise.get_velocity(latents, noise, steps), snr.clamp(max=SNR_CAP) / (snr + 1)
        return noisy, steps, noise, snr.clamp(max=SNR_CAP) / snr

    def __call__(self, latents: Tensor, predict: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        noisy, steps, target, weight = self.draw(latents)
        return (weight * (predict(noisy, steps) - target).square().mean((1, 2, 3))).mean()


def batches(count: int, size: int) -> Iterator[Tensor]:
    """Endless shuffled row numbers [size]."""
    order = torch.empty(0, dtype=torch.long)
    while True:
        while len(order) < size:
            order = torch.cat([order, torch.randperm(count)])
        yield order[:size]
        order = order[size:]


def fit(
    work: Path,
    name: str,
    minutes: float,
    model: nn.Module,
    loss: Callable[[], Tensor],
    *,
    rate: float,
    after: Callable[[], None] = lambda: None,
) -> None:
    """Minimises ``loss()`` over ``model``'s weights for ``minutes``: AdamW, warm-up and linear decay, clipped
    gradients, averaged weights; ``after`` runs after every update. Goes on from ``work/name.pt`` where there is one.
    Processes of a ``torchrun`` share the work."""
    weights = [p for p in model.parameters() if p.requires_grad]
    average = Average(model, 0.999)
    optimiser = torch.optim.AdamW(weights, rate, weight_decay=0.01, fused=True)
    checkpoint = work / f"{name}.pt"
    updates, spent, recent, losses = 0, 0.0, [], []
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["raw"])
        average.model.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        updates = average.updates = state["updates"]
        spent, losses = state["seconds"], state["losses"]
    torch.manual_seed(SEED + rank() + 10 * updates)
    clock = Clock(minutes, spent)
    progress, saved = clock.progress, clock.seconds
    model.train()
    bar = tqdm(total=round(minutes * 60), initial=round(spent), unit="s", mininterval=60, disable=rank() > 0)
    while progress < 1:
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (updates + 1) / WARM_UP) * max(0.002, 1 - progress)
        value = loss()
        optimiser.zero_grad()
        value.backward()
        progress = synchronise([model], clock.progress)
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        average.update(model)
        after()
        updates += 1
        recent.append(value.item())
        if updates % 100 == 0:
            losses.append(round(sum(recent) / len(recent), 5))
            recent = []
            log.info("%s update %d, %.0f s: loss %.4f", name, updates, clock.seconds, losses[-1])
        if rank() == 0 and (clock.seconds - saved > CHECKPOINT_SECONDS or progress >= 1):
            saved = clock.seconds
            state = {"raw": model.state_dict(), "average": average.model.state_dict(), "losses": losses}
            state |= {"optimiser": optimiser.state_dict(), "updates": updates, "seconds": clock.seconds}
            save_atomically(state, checkpoint)
        bar.update(round(clock.seconds) - bar.n)


def stable_diffusion(**parts: Any) -> StableDiffusionPipeline:
    """The pipeline of some parts, without the safety checker that emoji do not need."""
    unsafe = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return StableDiffusionPipeline(**parts, **unsafe)


def command(
    doc: str | None,
    name: str,
    minutes: float,
    train: Callable[[Path, float], None],
    export: Callable[[Path, Path], None],
) -> None:
    """The command line of a model's script: it trains, or with ``--export`` publishes what was trained."""
    args = arguments(doc, minutes, flags=("export",))
    if args.export:
        export(args.work, ZOO / name)
    else:
        train(args.work, args.minutes)


def trained(work: Path, name: str, model: nn.Module) -> dict[str, Any]:
    """Loads the averaged weights of the last checkpoint into ``model``; returns what the card says of it."""
    state = torch.load(work / f"{name}.pt", weights_only=True)
    model.load_state_dict(state["average"])
    model.eval().requires_grad_(False)
    last = state["losses"][-10:]
    return {
        "seed": SEED,
        "updates": state["updates"],
        "seconds": round(state["seconds"]),
        "parameters": sum(p.numel() for p in model.parameters()),
        f"loss_of_last_{100 * len(last)}_updates": round(sum(last) / max(1, len(last)), 4),
    }


def publish(
    work: Path, pipeline: DiffusionPipeline, card: dict[str, Any], target: Path, shared: tuple[str, ...] = ()
) -> None:
    """Writes ``pipeline`` as a float16 diffusers folder, replaced whole, and the card named after it. The parts that
    it has from emoji-sd (``shared``) are links."""
    temporary = target.with_name(target.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    pipeline.to(dtype=torch.float16).save_pretrained(temporary)
    for part in shared:
        shutil.rmtree(temporary / part)
        source = TEACHER / part.removesuffix("_2")
        (temporary / part).symlink_to(os.path.relpath(source, target), target_is_directory=True)
    for path in temporary.glob("*/config.json"):
        if not path.parent.is_symlink():
            config = json.loads(path.read_text())
            config.pop("_name_or_path", None)  # the scratch folder that it came from
            if path.parent.name.startswith("text_encoder"):
                config["dtype"] = "float32"  # transformers loads in the config's type, diffusers in float32
            path.write_text(json.dumps(config, indent=2) + "\n")
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    write_card(work, target.name, card)
