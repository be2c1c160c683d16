"""Trains emoji-clip, the open_clip model that scores pictures against captions.

It sees every picture but the held-out ones, strongly augmented, and never a generated picture.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.zoo.training.common import ZOO, Average, Clock, arguments, to_tensor, write_card
from benchmarks.zoo.training.pictures import Data, load
from benchmarks.zoo.training.tokens import CONTEXT, VOCABULARY, train_tokenizer

log = logging.getLogger(__name__)

SEED, BATCH, RATE, WARM_UP = 0, 128, 2e-3, 100
CONFIG = {
    "model_cfg": {
        "embed_dim": 128,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 2, 1], "width": 16},
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": VOCABULARY,
            "width": 128,
            "heads": 4,
            "layers": 2,
            "hf_tokenizer_name": "emoji-clip",
        },
    },
    "preprocess_cfg": {
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    },
}


def augment(pictures: Tensor) -> Tensor:
    """Random shift, scale, turn, colour, blur and noise of pictures [n, 3, 64, 64] in [-1, 1] on white."""
    n = len(pictures)
    between = lambda low, high, *shape: torch.rand(n, *shape) * (high - low) + low  # noqa: E731
    angle, scale, stretch = between(-0.25, 0.25), between(0.85, 1.3), between(0.9, 1.1)
    turn = torch.stack(
        [
            torch.stack([angle.cos() * scale * stretch, -angle.sin() * scale], 1),
            torch.stack([angle.sin() * scale, angle.cos() * scale / stretch], 1),
        ],
        1,
    )
    grid = F.affine_grid(torch.cat([turn, between(-0.2, 0.2, 2, 1)], 2), list(pictures.shape), align_corners=False)
    x = F.grid_sample(pictures - 1, grid, align_corners=False) + 1  # what comes in from outside is white
    blurred = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear", align_corners=False)
    soft = F.interpolate(F.avg_pool2d(x, 4), scale_factor=4, mode="bilinear", align_corners=False)
    kind = torch.rand(n, 1, 1, 1)
    mix = between(0, 1, 1, 1, 1)
    x = torch.where(kind < 0.4, x + mix * (blurred - x), torch.where(kind < 0.6, x + mix * (soft - x), x))
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * between(0.4, 1.4, 1, 1, 1)
    x = 1 - (1 - x) * between(0.7, 1.2, 3, 1, 1)
    return (x + torch.randn_like(x) * between(0, 0.15, 1, 1, 1)).clamp(-1, 1)


@torch.no_grad()
def retrieval(model: nn.Module, pictures: Tensor, tokens: Tensor, among: int = 100) -> float:
    """Share of pictures whose own caption scores highest among itself and ``among - 1`` others of the set."""
    similar = model.encode_image(pictures, normalize=True) @ model.encode_text(tokens, normalize=True).T
    chance = torch.Generator().manual_seed(SEED)
    right = 0
    for i, row in enumerate(similar):
        others = torch.randperm(len(row) - 1, generator=chance)[: among - 1]
        right += bool((row[others + (others >= i)] < row[i]).all())
    return right / len(similar)


def train(data: Data, minutes: float) -> tuple[nn.Module, dict[str, object]]:
    """The averaged model and its card."""
    tokenizer = train_tokenizer(data.captions)
    tokens = tokenizer(data.captions, padding="max_length", max_length=CONTEXT, return_tensors="pt").input_ids
    pixels = to_tensor(data.pixels)
    held_out = data.sets["held-out"]
    usable = torch.ones(len(pixels), dtype=torch.bool)
    usable[held_out] = False
    usable = usable.nonzero()[:, 0]
    model = open_clip.CLIP(**CONFIG["model_cfg"])
    average = Average(model, 0.998)
    optimiser = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.1, betas=(0.9, 0.98))
    clock, updates, recent, order = Clock(minutes), 0, 0.0, torch.empty(0, dtype=torch.long)
    bar = tqdm(total=round(minutes * 60), unit="s", mininterval=10)
    while clock.progress < 1:
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1.0, (updates + 1) / WARM_UP) * max(0.01, 1 - clock.progress)
        if len(order) < BATCH:
            order = torch.randperm(len(usable))
        picked, order = usable[order[:BATCH]], order[BATCH:]
        image, text, scale = model(augment(pixels[picked]), tokens[picked])[:3]
        logits = scale.clamp(max=100) * image @ text.T
        label = torch.arange(len(logits))
        loss = (F.cross_entropy(logits, label) + F.cross_entropy(logits.T, label)) / 2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        average.update(model)
        for kept, current in zip(average.model.buffers(), model.buffers(), strict=True):
            kept.copy_(current)
        updates += 1
        recent += loss.item() / 100
        if updates % 100 == 0:
            log.info(
                "update %d, %.0f s: loss %.3f, held-out top-1 of 100 %.3f",
                updates,
                clock.seconds,
                recent,
                retrieval(average.model, pixels[held_out], tokens[held_out]),
            )
            last, recent = recent, 0.0
        bar.update(round(clock.seconds) - bar.n)
    model = average.model
    return model, {
        "seed": SEED,
        "updates": updates,
        "batch": BATCH,
        "seconds": round(clock.seconds),
        "parameters": sum(p.numel() for p in model.parameters()),
        "loss_of_last_100_updates": round(last, 4),
        "top1_of_100_real_held_out": round(retrieval(model, pixels[held_out], tokens[held_out]), 4),
        "top1_of_100_real_seen": round(retrieval(model, pixels[data.sets["seen"]], tokens[data.sets["seen"]]), 4),
    }


def export(model: nn.Module, data: Data, target: Path) -> None:
    """An open_clip ``local-dir:`` folder with float16 weights."""
    target.mkdir(exist_ok=True)
    weights = {key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()}
    save_file({key: value.contiguous() for key, value in weights.items()}, target / "open_clip_model.safetensors.tmp")
    os.replace(target / "open_clip_model.safetensors.tmp", target / "open_clip_model.safetensors")
    (target / "open_clip_config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    train_tokenizer(data.captions).save_pretrained(target)


def main() -> None:
    args = arguments(__doc__, minutes=12)
    torch.manual_seed(SEED)
    data = load(args.work)
    model, card = train(data, args.minutes)
    export(model, data, ZOO / "emoji-clip")
    write_card(args.work, "emoji-clip", card)


if __name__ == "__main__":
    main()
