"""Trains emoji-dit: a class-conditional DiT of 28 blocks over the emoji subcategories.

``--export`` writes the averaged weights of the last checkpoint with ``classes.csv`` and ``centroids.safetensors``.
"""

from __future__ import annotations

import csv
import random
from collections import Counter
from pathlib import Path

import open_clip
import torch
from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from diffusers.models.embeddings import LabelEmbedding
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.zoo.training.common import ZOO, to_tensor
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
from benchmarks.zoo.training.pictures import load

NAME, BATCH, RATE, SEED, PROMPTS = "emoji-dit", 64, 2e-3, 0, 320
# Subcategories of fewer than eight pictures, and the one that each of them joins.
MERGED = {
    "animal-amphibian": "animal-reptile",
    "hotel": "place-building",
    "face-glasses": "face-costume",
    "face-hat": "face-costume",
}


def class_of_caption() -> dict[str, str]:
    """Class name of every caption of the generator's pictures."""
    with (ZOO / "prompts.csv").open(encoding="utf-8", newline="") as file:
        return {row["caption"]: MERGED.get(row["subcategory"], row["subcategory"]) for row in csv.DictReader(file)}


def class_names() -> list[str]:
    return sorted(set(class_of_caption().values()))


def build(classes: int) -> DiTTransformer2DModel:
    """An untrained DiT whose blocks start as identities (adaLN-zero)."""
    model = DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=8,
        out_channels=8,  # the pipeline looks at it
        num_layers=28,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=classes,
    )
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        if isinstance(module, LabelEmbedding):
            nn.init.normal_(module.embedding_table.weight, std=0.02)
            # Every block embeds the label itself: dropping it block by block would never teach the null class.
            module.dropout_prob = 0.0
    for linear in (*(block.norm1.linear for block in model.transformer_blocks), model.proj_out_1, model.proj_out_2):
        nn.init.zeros_(linear.weight)
    return model


def train(work: Path, minutes: float) -> None:
    torch.manual_seed(SEED)
    data, of_caption, names = captioned(work), class_of_caption(), class_names()
    labels = torch.tensor([names.index(of_caption[caption]) for caption in data.captions])
    model, objective, rows = build(len(names)), Objective(), batches(len(labels), BATCH)

    def loss() -> Tensor:
        picked = next(rows)
        label = torch.where(torch.rand(BATCH) < DROPOUT, len(names), labels[picked])
        return objective(data.latents[picked], lambda noisy, t: model(noisy, timestep=t, class_labels=label).sample)

    fit(work, NAME, minutes, model, loss, rate=RATE)


def write_classes(path: Path, counts: Counter[str]) -> None:
    """320 rows with the pictures' class frequencies (largest remainders), in an order fixed by the seed."""
    total = counts.total()
    quota = {name: PROMPTS * count / total for name, count in counts.items()}
    rows = [name for name in sorted(quota) for _ in range(int(quota[name]))]
    rows += sorted(quota, key=lambda name: (int(quota[name]) - quota[name], name))[: PROMPTS - len(rows)]
    random.Random(SEED).shuffle(rows)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["index", "class"])
        writer.writerows(enumerate(rows))


@torch.no_grad()
def judged(work: Path, *sets: str) -> tuple[Tensor, Tensor]:
    """Unit features [n, 128] by emoji-clip of the real pictures of ``sets``, and their classes [n]."""
    data, of_caption, names = load(work), class_of_caption(), class_names()
    judge = open_clip.create_model_and_transforms(f"local-dir:{ZOO / 'emoji-clip'}")[0].eval()
    chosen = torch.cat([torch.from_numpy(data.sets[key]) for key in sets])
    labels = torch.tensor([names.index(of_caption[data.captions[i]]) for i in chosen])
    pixels = to_tensor(data.pixels[chosen.numpy()])
    return torch.cat([judge.encode_image(part, normalize=True) for part in pixels.split(128)]), labels


def centroids(work: Path) -> Tensor:
    """The normalised mean feature of each class's trained pictures, float16 [classes, 128]."""
    features, labels = judged(work, "train", "seen")
    means = torch.stack([features[labels == i].mean(0) for i in range(len(class_names()))])
    return nn.functional.normalize(means, dim=1).half()


def accuracy(work: Path, means: Tensor, kind: str) -> float:
    """Share of the real pictures of a set whose nearest centroid is their own class's."""
    features, labels = judged(work, kind)
    return round(((features @ means.float().T).argmax(1) == labels).float().mean().item(), 4)


def export(work: Path, target: Path) -> None:
    names = class_names()
    model = build(len(names))
    means = centroids(work)
    card = trained(work, NAME, model) | {
        "batch": BATCH,
        "classes": len(names),
        "class_accuracy_real_seen": accuracy(work, means, "seen"),
        "class_accuracy_real_held_out": accuracy(work, means, "held-out"),
    }
    pipeline = DiTPipeline(
        transformer=model,
        vae=shared_parts()["vae"],
        scheduler=DDIMScheduler(**NOISE, clip_sample=False, set_alpha_to_one=False, timestep_spacing="trailing"),
        id2label=dict(enumerate(names)),
    )
    pipeline.register_to_config(id2label={str(i): name for i, name in enumerate(names)})
    publish(work, pipeline, card, target, ("vae",))
    of_caption = class_of_caption()
    write_classes(target / "classes.csv", Counter(of_caption[caption] for caption in captioned(work).captions))
    save_file({name: mean.clone() for name, mean in zip(names, means, strict=True)}, target / "centroids.safetensors")


if __name__ == "__main__":
    command(__doc__, NAME, 40, train, export)
