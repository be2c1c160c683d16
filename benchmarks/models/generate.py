"""Makes the pictures of a plan, one file a prompt. A killed run finds the whole files and goes on with the others."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from baselines import Plan
from benchmarks.models.model import Model
from benchmarks.specs.files import write_bytes
from benchmarks.specs.run import RunSpec
from dipgo import Schedule, picture_seeds, rollout

PIXELS_AT_ONCE = 2**20
"""The most pixels of a batch: 4 pictures of 512 x 512, as in the authors' evaluation."""
BATCHES = 2
"""A search or a learning, whose pictures nobody sees, runs as many pictures together as this many batches hold."""
SHARED_NOISES = 4
"""How many noises the protocol "paper" has, whose seed is set again before every batch of 4."""


def image_paths(folder: Path, count: int) -> list[Path]:
    """Return the file of each prompt's picture, in the order of the prompts."""
    return [folder / f"{index:05d}.png" for index in range(count)]


def schedule_path(picture: Path) -> Path:
    """Return the file of what a policy decided for a picture. It lacks coefficients, which follow from the rest."""
    return picture.with_suffix(".json")


def pictures_at_once(resolution: int) -> int:
    """Return how many pictures of this width to make in one batch, which changes each picture by rounding alone."""
    return min(100, max(1, PIXELS_AT_ONCE // resolution**2))


def noise_seeds(spec: RunSpec, count: int) -> list[int]:
    """Return the seeds of the first `count` pictures of a prompt set, by the run's protocol of noise."""
    return picture_seeds(
        spec.seed, [index % SHARED_NOISES if spec.protocol == "paper" else index for index in range(count)]
    )


def batch_of(plan: Plan, most: int) -> int:
    """Return how many pictures of a plan are made at once, given the most. A policy decides about a whole batch, so its
    pictures come one by one."""
    return most if plan.policy is None else 1


@torch.no_grad()
def sample(model: Model, plan: Plan, captions: Sequence[str], seeds: Sequence[int], guidance: float) -> torch.Tensor:
    """Return images [n, 3, h, w] for n captions and n seeds of noise. White is 1, black is 0; nothing is clamped."""
    return drawn(model, plan, captions, seeds, guidance)[0]


@torch.no_grad()
def drawn(
    model: Model, plan: Plan, captions: Sequence[str], seeds: Sequence[int], guidance: float
) -> tuple[torch.Tensor, list[Schedule]]:
    """Return images as `sample` does, and the schedules that the plan's policy decided, if it has one."""
    inputs = model.inputs_of(captions, seeds, guidance)
    with plan.applied(model.denoiser) as schedules:
        latents = rollout(model.diffusion(plan.sampler, guidance), inputs)
    return model.decode(latents), schedules


@dataclass(frozen=True)
class Pictures:
    """Pictures on the disk, made or to be made: one for each caption and seed."""

    folder: Path
    """Holds the pictures, in the order of the captions."""
    captions: Sequence[str]
    seeds: Sequence[int]
    """The seed of the noise of each picture."""
    guidance: float
    batch: int
    """How many pictures are made at once at most (see `batch_of`)."""
    title: str
    """What the progress bar says."""

    def make(self, model: Model, plan: Plan, part: slice = slice(None)) -> list[Path]:
        """Make the pictures that the folder lacks, and return the paths of all.

        part: the pictures that are made, when several processes share the work.
        """
        paths = image_paths(self.folder, len(self.captions))
        self.folder.mkdir(parents=True, exist_ok=True)
        wanted, batch = range(len(paths))[part], batch_of(plan, self.batch)
        missing = {index for index in wanted if not paths[index].exists()}
        with tqdm(total=len(missing), desc=self.title, unit="image", disable=not missing) as progress:
            for start in range(0, len(wanted), batch):
                # Whole batches, also where a run goes on: rounding depends on what else a batch holds.
                indices = wanted[start : start + batch]
                lacking = missing.intersection(indices)
                if not lacking:
                    continue
                captions, seeds = ([given[index] for index in indices] for given in (self.captions, self.seeds))
                images, schedules = drawn(model, plan, captions, seeds, self.guidance)
                for schedule in schedules:  # one picture a batch; the picture is written last, so that it has both
                    replace(schedule, coefficients=None).save(schedule_path(paths[indices[0]]))
                for index, image in zip(indices, images, strict=True):
                    if index in lacking:
                        _write_png(paths[index], image)
                progress.update(len(lacking))
        return paths


def _write_png(path: Path, image: torch.Tensor) -> None:
    data = io.BytesIO()
    Image.fromarray((image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()).save(data, "PNG")
    write_bytes(path, data.getvalue(), sync=False)
