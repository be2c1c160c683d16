"""Inputs of a plan: one file a prompt, renamed into place, so that a killed run goes on where it stopped."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from baselines import Plan
from benchmarks.models.model import Model
from benchmarks.specs.files import write_bytes
from benchmarks.specs.run import RunSpec
from dipgo import gated, picture_seeds, rollout

PIXELS_AT_ONCE = 2**20  # of one batch: 4 pictures of 512 x 512, as the authors' evaluation has it
BATCHES = 2  # as many pictures run together in a search or a learning, unseen, as this many batches hold
SHARED_NOISES = 4  # of the protocol "paper": its seed is set again before every batch of 4


def image_paths(folder: Path, count: int) -> list[Path]:
    """The file of each prompt's picture, in the prompts' order."""
    return [folder / f"{index:05d}.png" for index in range(count)]


def pictures_at_once(resolution: int) -> int:
    """How many pictures of `resolution` squared pixels to make in one batch; pictures change by rounding alone."""
    return min(100, max(1, PIXELS_AT_ONCE // resolution**2))


def noise_seeds(spec: RunSpec, count: int) -> list[int]:
    """The seeds of a prompt set's first `count` pictures, by the run's noise protocol."""
    return picture_seeds(
        spec.seed, [index % SHARED_NOISES if spec.protocol == "paper" else index for index in range(count)]
    )


@torch.no_grad()
def sample(model: Model, plan: Plan, captions: Sequence[str], seeds: Sequence[int], guidance: float) -> torch.Tensor:
    """Images [n, 3, h, w], white at 1 and black at 0, not clamped, for captions and their pictures' seeds."""
    inputs = model.inputs_of(captions, seeds, guidance)
    with gated(model.denoiser, plan.costs.graph, plan.schedule):
        latents = rollout(model.diffusion(plan.sampler, guidance), inputs)
    return model.decode(latents)


def generate(
    model: Model,
    plan: Plan,
    captions: Sequence[str],
    folder: Path,
    *,
    seeds: Sequence[int],
    guidance: float,
    batch: int,
    title: str,
    part: slice = slice(None),
) -> list[Path]:
    """Make the pictures of `part` that `folder` lacks and return the paths of all, one for each caption and seed."""
    paths = image_paths(folder, len(captions))
    folder.mkdir(parents=True, exist_ok=True)
    wanted = range(len(paths))[part]
    missing = {index for index in wanted if not paths[index].exists()}
    with tqdm(total=len(missing), desc=title, unit="image", disable=not missing) as progress:
        for start in range(0, len(wanted), batch):
            # Whole batches, also where a run goes on: rounding depends on what else a batch holds.
            indices = wanted[start : start + batch]
            lacking = missing.intersection(indices)
            if not lacking:
                continue
            images = sample(model, plan, [captions[i] for i in indices], [seeds[i] for i in indices], guidance)
            for index, image in zip(indices, images, strict=True):
                if index in lacking:
                    _write_png(paths[index], image)
            progress.update(len(lacking))
    return paths


def _write_png(path: Path, image: torch.Tensor) -> None:
    data = io.BytesIO()
    Image.fromarray((image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()).save(data, "PNG")
    write_bytes(path, data.getvalue(), sync=False)
