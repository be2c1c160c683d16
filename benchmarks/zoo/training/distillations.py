"""The students: emoji-xl-lcm learns few steps from its diffusion model, both emoji-bk learn emoji-sd's function.

emoji-xl is emoji-xl-lcm's teacher: the same U-Net without the embedded guidance, trained as a diffusion model. It is
not shipped.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from benchmarks.zoo.training.common import batches
from benchmarks.zoo.training.denoisers import (
    BATCH,
    DROPOUT,
    SD,
    Conditioner,
    Noising,
    captioned,
    install,
    live_denoiser,
    live_pipeline,
    measure,
    newest,
    objective,
    weighted,
    with_denoiser,
)
from benchmarks.zoo.training.drawing import WAYS, measure_drawn
from benchmarks.zoo.training.loop import Card, Training

LCM_NAME = "emoji-xl-lcm"
LCM_BATCH, TARGET_DECAY = 32, 0.95
GUIDANCE = (2.0, 6.0)
SOLVER_STEPS = 50  # of DDIM; the distillation's skip is 1000 / 50
DATA_VARIANCE = 0.25  # by consistency models' convention


def build_teacher() -> UNet2DConditionModel:
    """emoji-xl-lcm's weights without its embedded guidance."""
    student = live_denoiser(LCM_NAME)
    teacher = UNet2DConditionModel.from_config({**student.config, "time_cond_proj_dim": None})
    teacher.load_state_dict({k: v for k, v in student.state_dict().items() if "cond_proj" not in k})
    return teacher.to(memory_format=torch.channels_last)


def measure_teacher(work: Path, teacher: nn.Module) -> Card:
    return measure_drawn(with_denoiser(live_pipeline(LCM_NAME), teacher), WAYS["emoji-xl"])


XL = Training("emoji-xl", 45, 6e-4, build_teacher, partial(objective, LCM_NAME), measure_teacher)


def consistency_objective(work: Path, student: UNet2DConditionModel) -> Callable[[float], Tensor]:
    """Latent consistency distillation (Luo et al., 2023) with guidance drawn from 2 to 6 and embedded; pseudo-Huber
    loss to an average of the student."""
    data, teacher, pipeline = captioned(work), newest(XL), live_pipeline(LCM_NAME)
    conditioner = Conditioner(with_denoiser(pipeline, teacher), data)
    average, target = EMAModel(student.parameters(), decay=TARGET_DECAY), copy.deepcopy(student).requires_grad_(False)
    noise, scaling = pipeline.scheduler, pipeline.scheduler.config.timestep_scaling
    alphas = noise.alphas_cumprod.sqrt()[:, None, None, None]
    sigmas = (1 - noise.alphas_cumprod).sqrt()[:, None, None, None]
    skip, channels = len(alphas) // SOLVER_STEPS, student.config.time_cond_proj_dim
    rows, kept = batches(len(data.captions), LCM_BATCH), torch.zeros(LCM_BATCH, dtype=torch.bool)

    def consistent(unet: nn.Module, x: Tensor, steps: Tensor, condition: dict[str, object]) -> Tensor:
        """The consistency function: clean latents [n, 8, 8, 8] from ``x`` at ``steps`` [n]; the identity at 0."""
        clean = (x - sigmas[steps] * unet(x, steps, **condition).sample) / alphas[steps]
        time = (steps * scaling).view(-1, 1, 1, 1)
        spread = time.square() + DATA_VARIANCE
        return x * (DATA_VARIANCE / spread) + clean * (time / spread.sqrt())

    def loss(progress: float) -> Tensor:
        average.step(student.parameters())
        average.copy_to(target.parameters())
        picked = next(rows)
        steps = torch.randint(1, SOLVER_STEPS + 1, (LCM_BATCH,)) * skip - 1
        before = (steps - skip).clamp(min=0)
        # A guidance scale g adds (g - 1) times the difference to the conditional prediction; g - 1 is embedded.
        extra = torch.empty(LCM_BATCH).uniform_(*GUIDANCE) - 1
        guidance = {"timestep_cond": pipeline.get_guidance_scale_embedding(extra, embedding_dim=channels)}
        condition, clean = conditioner(picked, kept), data.latents[picked]
        noisy = noise.add_noise(clean, torch.randn_like(clean), steps)
        drawn = consistent(student, noisy, steps, condition | guidance)
        with torch.no_grad():
            conditional = teacher(noisy, steps, **condition).sample
            unconditional = teacher(noisy, steps, **conditioner(picked, ~kept)).sample
            epsilon = conditional + extra.view(-1, 1, 1, 1) * (conditional - unconditional)
            clean = (noisy - sigmas[steps] * epsilon) / alphas[steps]
            solved = alphas[before] * clean + sigmas[before] * epsilon
            wanted = consistent(target, solved, before, condition | guidance)
        return ((drawn - wanted).square() + 1e-6).sqrt().mean()  # pseudo-Huber

    return loss


LCM = Training(
    LCM_NAME,
    40,
    3e-4,
    partial(live_denoiser, LCM_NAME),
    consistency_objective,
    partial(measure, LCM_NAME),
    partial(install, LCM_NAME),
)


@contextmanager
def block_outputs(unet: UNet2DConditionModel, mid: bool) -> Iterator[dict[str, Tensor]]:
    """Yields a dict that every forward fills with the outputs of the down, mid and up blocks, by name."""
    blocks = {f"{side}.{i}": b for side in ("down_blocks", "up_blocks") for i, b in enumerate(getattr(unet, side))}
    blocks |= {"mid_block": unet.mid_block} if mid else {}
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> None:
            outputs[name] = output if isinstance(output, Tensor) else output[0]

        return hook

    handles = [block.register_forward_hook(keep(name)) for name, block in blocks.items()]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def bk_objective(work: Path, student: UNet2DConditionModel) -> Callable[[float], Tensor]:
    """BK-SDM's distillation: the denoising error, the squared distance to emoji-sd's output, and the relative squared
    distances of the outputs of the blocks that both have."""
    data, teacher, pipeline = captioned(work), newest(SD), live_pipeline("emoji-sd")
    conditioner, noising = Conditioner(pipeline, data), Noising(pipeline.scheduler.config)
    rows, mid = batches(len(data.captions), BATCH), student.mid_block is not None

    def loss(progress: float) -> Tensor:
        picked = next(rows)
        condition = conditioner(picked, torch.rand(BATCH) < DROPOUT)
        noisy, steps, target, weight = noising.draw(data.latents[picked])
        with block_outputs(teacher, mid) as wanted, block_outputs(student, mid) as drawn:
            with torch.no_grad():
                taught = teacher(noisy, steps, **condition).sample
            predicted = student(noisy, steps, **condition).sample
        # Relative to each block's size, which differs by orders of magnitude.
        errors = [(drawn[name] - wanted[name]).square().mean() / wanted[name].square().mean() for name in wanted]
        return weighted(weight, predicted, target) + weighted(weight, predicted, taught) + torch.stack(errors).sum()

    return loss


def bk_training(name: str) -> Training:
    starts, ends = partial(live_denoiser, name), (partial(measure, name), partial(install, name))
    return Training(name, 30, 4e-4, starts, bk_objective, *ends)


BK_BASE, BK_SMALL = bk_training("emoji-bk-base"), bk_training("emoji-bk-small")
