"""Trains emoji-bk-base and emoji-bk-small: emoji-sd with BK-SDM's layers removed, retrained by its distillation.

The loss is BK-SDM's: the denoising error, the squared distance to emoji-sd's output, and the relative squared
distances of the outputs of the blocks that both have. ``--export`` writes the averaged weights of the last checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import PNDMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from baselines.bk_sdm import build
from benchmarks.zoo.training.common import ZOO, arguments
from benchmarks.zoo.training.diffusion import (
    DROPOUT,
    SEED,
    TEACHER,
    Objective,
    batches,
    captioned,
    encode,
    fit,
    publish,
    shared_parts,
    stable_diffusion,
    trained,
)

BATCH, RATE = 64, 5e-4


def removed(teacher: UNet2DConditionModel, variant: str) -> UNet2DConditionModel:
    """The student with the teacher's weights."""
    return build(teacher, variant).to(memory_format=torch.channels_last)


@contextmanager
def block_outputs(unet: UNet2DConditionModel, mid: bool) -> Iterator[dict[str, Tensor]]:
    """Filled by every forward: the outputs of the down, mid and up blocks, by name."""
    blocks = {f"{side}.{i}": b for side in ("down_blocks", "up_blocks") for i, b in enumerate(getattr(unet, side))}
    blocks |= {"mid_block": unet.mid_block} if mid else {}
    found: dict[str, Tensor] = {}

    def keep(name: str) -> object:
        def hook(module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> None:
            found[name] = output if isinstance(output, Tensor) else output[0]

        return hook

    handles = [block.register_forward_hook(keep(name)) for name, block in blocks.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def train(work: Path, minutes: float, variant: str) -> None:
    torch.manual_seed(SEED)
    data, parts = captioned(work), shared_parts()
    texts, empty = encode(parts, data.captions), encode(parts, [""])
    teacher = UNet2DConditionModel.from_pretrained(TEACHER / "unet").eval().requires_grad_(False)
    student = removed(teacher, variant)
    teacher.to(memory_format=torch.channels_last)
    objective, rows = Objective(), batches(len(texts), BATCH)
    mid = student.mid_block is not None
    with block_outputs(teacher, mid) as wanted, block_outputs(student, mid) as found:

        def loss() -> Tensor:
            picked = next(rows)
            text = torch.where(torch.rand(BATCH, 1, 1) < DROPOUT, empty, texts[picked])
            latents = data.latents[picked].contiguous(memory_format=torch.channels_last)
            noisy, steps, target, weight = objective.draw(latents)
            with torch.no_grad():
                taught = teacher(noisy, steps, encoder_hidden_states=text).sample
            predicted = student(noisy, steps, encoder_hidden_states=text).sample
            task = (weight * (predicted - target).square().mean((1, 2, 3))).mean()
            output = (weight * (predicted - taught).square().mean((1, 2, 3))).mean()
            # Relative to each block's size, which differs by orders of magnitude.
            errors = [(found[name] - wanted[name]).square().mean() / wanted[name].square().mean() for name in wanted]
            return task + output + torch.stack(errors).sum()

        fit(work, f"emoji-bk-{variant}", minutes, student, loss, rate=RATE)


def export(work: Path, target: Path, variant: str) -> None:
    teacher = UNet2DConditionModel.from_pretrained(TEACHER / "unet")
    student = removed(teacher, variant)
    card = trained(work, target.name, student) | {"batch": BATCH}
    pipeline = stable_diffusion(
        unet=student,
        scheduler=PNDMScheduler.from_pretrained(TEACHER / "scheduler"),
        **shared_parts(),
    )
    publish(work, pipeline, card, target, ("vae", "text_encoder", "tokenizer"))


def main() -> None:
    args = arguments(__doc__, minutes=9, flags=("export", "small"))
    variant = "small" if args.small else "base"
    if args.export:
        export(args.work, ZOO / f"emoji-bk-{variant}", variant)
    else:
        train(args.work, args.minutes, variant)


if __name__ == "__main__":
    main()
