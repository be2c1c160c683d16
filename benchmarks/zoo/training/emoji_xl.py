"""Trains emoji-xl-lcm: a U-Net of SD-XL's shape, distilled to a latent consistency model of a few steps.

First the diffusion model, warm-started from emoji-sd; then with ``--distil`` latent consistency distillation
(Luo et al., 2023) from it, with guidance embedded. ``--export`` writes the distilled model.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from diffusers import LCMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModelWithProjection

from benchmarks.zoo.training.common import ZOO, Average, arguments
from benchmarks.zoo.training.diffusion import (
    DROPOUT,
    NOISE,
    SEED,
    TEACHER,
    Objective,
    batches,
    captioned,
    fit,
    publish,
    shared_parts,
    trained,
    warm_start,
)

log = logging.getLogger(__name__)

NAME, DIFFUSION = "emoji-xl-lcm", "emoji-xl"
BATCH, RATE = 64, 1e-3
DISTIL_BATCH, DISTIL_RATE, TARGET_AVERAGE = 32, 3e-4, 0.95
GUIDANCE = (2.0, 6.0)
SOLVER_STEPS = 50  # of DDIM; the distillation's skip is 1000 / 50
TIME_IDS = (64, 64, 0, 0, 64, 64)  # original size, crop, target size: every picture's
WIDTHS = (32, 64, 96)
GUIDANCE_CHANNELS = 32


def build(guided: bool) -> UNet2DConditionModel:
    """Untrained; ``guided`` takes a guidance embedding, as the distilled model does."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=8,
        block_out_channels=WIDTHS,
        layers_per_block=2,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=tuple(width // 8 for width in WIDTHS),  # diffusers reads this as the number of heads
        cross_attention_dim=96,
        norm_num_groups=8,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=6 * 32 + 96,
        time_cond_proj_dim=GUIDANCE_CHANNELS if guided else None,
    ).to(memory_format=torch.channels_last)


def text_encoder() -> CLIPTextModelWithProjection:
    """emoji-sd's text encoder as SD-XL reads it: of the penultimate layer, with a projection. One more layer that
    adds nothing makes emoji-sd's last layer the penultimate; the projection is the identity."""
    source = shared_parts()["text_encoder"]
    config = source.config.__class__.from_dict(
        {**source.config.to_dict(), "num_hidden_layers": source.config.num_hidden_layers + 1, "projection_dim": 96}
    )
    encoder = CLIPTextModelWithProjection(config)
    inner = encoder.text_model
    missing, unexpected = inner.load_state_dict(source.state_dict(), strict=False)
    added = inner.encoder.layers[-1]
    if unexpected or not all(key.startswith(f"encoder.layers.{len(inner.encoder.layers) - 1}.") for key in missing):
        raise ValueError(f"emoji-sd's text encoder has other weights than expected: {unexpected or missing}")
    for linear in (added.self_attn.out_proj, added.mlp.fc2):
        torch.nn.init.zeros_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    torch.nn.init.eye_(encoder.text_projection.weight)
    return encoder.eval().requires_grad_(False)


def pipeline_of(unet: UNet2DConditionModel) -> StableDiffusionXLPipeline:
    shared = shared_parts()
    return StableDiffusionXLPipeline(
        vae=shared["vae"],
        text_encoder=None,
        text_encoder_2=text_encoder(),
        tokenizer=None,
        tokenizer_2=shared["tokenizer"],
        unet=unet,
        scheduler=LCMScheduler(**NOISE, original_inference_steps=SOLVER_STEPS, clip_sample=False),
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )


class Conditions:
    """Encoded captions, as keyword arguments of the U-Net."""

    def __init__(self, pipeline: StableDiffusionXLPipeline, captions: list[str]) -> None:
        with torch.no_grad():
            self.texts, _, self.pooled, _ = pipeline.encode_prompt(captions, do_classifier_free_guidance=False)
            self.empty, _, self.empty_pooled, _ = pipeline.encode_prompt("", do_classifier_free_guidance=False)

    def __call__(self, picked: Tensor, dropped: Tensor) -> dict[str, object]:
        """Of the rows ``picked`` [n]; the empty caption's where ``dropped`` [n]."""
        return {
            "encoder_hidden_states": torch.where(dropped[:, None, None], self.empty, self.texts[picked]),
            "added_cond_kwargs": {
                "text_embeds": torch.where(dropped[:, None], self.empty_pooled, self.pooled[picked]),
                "time_ids": torch.tensor([TIME_IDS]).expand(len(picked), -1),
            },
        }


def _origin(key: str) -> str:
    """emoji-sd's name of a weight: its innermost stage is missing here."""
    parts = key.split(".")
    if parts[0] == "up_blocks":
        parts[1] = str(int(parts[1]) + 1)
    return ".".join(parts)


def train(work: Path, minutes: float) -> None:
    torch.manual_seed(SEED)
    data, unet = captioned(work), build(guided=False)
    share = warm_start(unet, UNet2DConditionModel.from_pretrained(TEACHER / "unet").state_dict(), _origin)
    log.info("%.1f %% of the weights come from emoji-sd", 100 * share)
    conditions, objective = Conditions(pipeline_of(unet), data.captions), Objective()
    rows = batches(len(data.captions), BATCH)

    def loss() -> Tensor:
        picked = next(rows)
        condition = conditions(picked, torch.rand(BATCH) < DROPOUT)
        latents = data.latents[picked].contiguous(memory_format=torch.channels_last)
        return objective(latents, lambda noisy, steps: unet(noisy, steps, **condition).sample)

    fit(work, DIFFUSION, minutes, unet, loss, rate=RATE)


def distil(work: Path, minutes: float) -> None:
    torch.manual_seed(SEED)
    data, teacher, student = captioned(work), build(guided=False), build(guided=True)
    trained(work, DIFFUSION, teacher)
    student.load_state_dict(teacher.state_dict(), strict=False)
    torch.nn.init.zeros_(student.time_embedding.cond_proj.weight)
    target = Average(student, TARGET_AVERAGE)
    pipeline = pipeline_of(student)
    conditions, rows = Conditions(pipeline, data.captions), batches(len(data.captions), DISTIL_BATCH)
    noise, scaling = pipeline.scheduler, pipeline.scheduler.config.timestep_scaling
    alphas = noise.alphas_cumprod.sqrt()[:, None, None, None]
    sigmas = (1 - noise.alphas_cumprod).sqrt()[:, None, None, None]
    skip = len(alphas) // SOLVER_STEPS
    kept, nobody = torch.zeros(DISTIL_BATCH, dtype=torch.bool), torch.ones(DISTIL_BATCH, dtype=torch.bool)

    def consistent(unet: UNet2DConditionModel, x: Tensor, steps: Tensor, condition: dict[str, object]) -> Tensor:
        """The consistency function: clean latents [n, 8, 8, 8] from ``x`` at ``steps`` [n]; the identity at 0."""
        clean = (x - sigmas[steps] * unet(x, steps, **condition).sample) / alphas[steps]
        time = (steps * scaling).view(-1, 1, 1, 1)
        spread = time.square() + 0.25  # the data's deviation is 0.5 by convention
        return x * (0.25 / spread) + clean * (time / spread.sqrt())

    def loss() -> Tensor:
        picked = next(rows)
        latents = data.latents[picked].contiguous(memory_format=torch.channels_last)
        steps = torch.randint(1, SOLVER_STEPS + 1, (DISTIL_BATCH,)) * skip - 1
        before = (steps - skip).clamp(min=0)
        # A guidance scale g adds (g - 1) times the difference to the conditional prediction; g - 1 is embedded.
        extra = torch.empty(DISTIL_BATCH).uniform_(*GUIDANCE) - 1
        guidance = pipeline.get_guidance_scale_embedding(extra, embedding_dim=GUIDANCE_CHANNELS)
        condition = conditions(picked, kept)
        noisy = noise.add_noise(latents, torch.randn_like(latents), steps)
        found = consistent(student, noisy, steps, condition | {"timestep_cond": guidance})
        with torch.no_grad():
            conditional = teacher(noisy, steps, **condition).sample
            unconditional = teacher(noisy, steps, **conditions(picked, nobody)).sample
            epsilon = conditional + extra.view(-1, 1, 1, 1) * (conditional - unconditional)
            clean = (noisy - sigmas[steps] * epsilon) / alphas[steps]
            solved = alphas[before] * clean + sigmas[before] * epsilon
            wanted = consistent(target.model, solved, before, condition | {"timestep_cond": guidance})
        return ((found - wanted).square() + 1e-6).sqrt().mean()  # pseudo-Huber

    fit(work, NAME, minutes, student, loss, rate=DISTIL_RATE, after=lambda: target.update(student))


def export(work: Path, target: Path) -> None:
    diffusion, unet = build(guided=False), build(guided=True)
    share = warm_start(diffusion, UNet2DConditionModel.from_pretrained(TEACHER / "unet").state_dict(), _origin)
    first = trained(work, DIFFUSION, diffusion) | {"batch": BATCH, "share_of_weights_from_emoji_sd": round(share, 3)}
    card = {"diffusion": first, "distillation": trained(work, NAME, unet) | {"batch": DISTIL_BATCH}}
    publish(work, pipeline_of(unet), card, target, ("vae", "tokenizer_2"))


def main() -> None:
    args = arguments(__doc__, minutes=15, flags=("distil", "export"))
    if args.export:
        export(args.work, ZOO / NAME)
    else:
        (distil if args.distil else train)(args.work, args.minutes)


if __name__ == "__main__":
    main()
