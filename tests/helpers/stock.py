"""Tiny random pipelines of diffusers as they are, each with the arguments of a run. They are given embedded prompts, so
that they need no text encoder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch

from tests.conftest import SD_SCHEDULER
from tests.helpers.denoisers import made
from tests.helpers.pipelines import tiny_vae

BETAS = {name: SD_SCHEDULER[name] for name in ("beta_start", "beta_end", "beta_schedule")}
GUIDED = {"prompt_embeds": torch.ones(1, 5, 8), "negative_prompt_embeds": torch.zeros(1, 5, 8), "guidance_scale": 4.0}
POOLED = {"pooled_prompt_embeds": torch.ones(1, 8), "negative_pooled_prompt_embeds": torch.zeros(1, 8)}
PICTURE = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)
HALF = (torch.arange(16) > 7).float().expand(1, 1, 16, 16)


@dataclass
class Stock:
    """A stock pipeline and a run of it."""

    pipeline: Any
    run: dict[str, Any]
    component: str = "unet"
    calls_per_step: int = 1
    others: list[dict[str, Any]] = field(default_factory=lambda: [{"num_inference_steps": 6}])
    """Changes of the run that a schedule for it does not fit."""
    scheduler: Any = None
    """Another scheduler, whose calls it does not fit either."""

    def __post_init__(self) -> None:
        self.pipeline.set_progress_bar_config(disable=True)

    @property
    def denoiser(self) -> torch.nn.Module:
        return getattr(self.pipeline, self.component)

    def draw(self, **changes: Any) -> torch.Tensor:
        run = {"num_inference_steps": 4, "output_type": "pt", **self.run, **changes}
        return torch.as_tensor(self.pipeline(**run, generator=torch.Generator().manual_seed(0), return_dict=False)[0])


def _sd(kind: str, scheduler: Any, unet: str = "sd unet", **parts: Any) -> Any:
    none = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    parts = {"vae": tiny_vae(), "unet": made(unet).module, "scheduler": scheduler, **parts}
    return getattr(diffusers, kind)(**none, **parts, requires_safety_checker=False)


def _text_to_image(name: str, **config: Any) -> Stock:
    scheduler = getattr(diffusers, name)(**BETAS, **config)
    other = diffusers.DDPMScheduler(**BETAS)
    return Stock(_sd("StableDiffusionPipeline", scheduler), GUIDED, scheduler=other)


def _image_to_image() -> Stock:
    pipeline = _sd("StableDiffusionImg2ImgPipeline", diffusers.DDIMScheduler(**SD_SCHEDULER))
    run = {**GUIDED, "image": PICTURE, "strength": 0.8, "num_inference_steps": 5}
    others = [{"strength": 0.6}, {"strength": 1.0}, {"num_inference_steps": 10, "strength": 0.4}]
    return Stock(pipeline, run, others=others, scheduler=diffusers.UniPCMultistepScheduler(**BETAS))


def _inpaint() -> Stock:
    pipeline = _sd("StableDiffusionInpaintPipeline", diffusers.DDIMScheduler(**SD_SCHEDULER), "inpainting unet")
    run = {**GUIDED, "image": PICTURE, "mask_image": HALF, "strength": 1.0, "height": 16, "width": 16}
    return Stock(pipeline, run, others=[{"strength": 0.5}, {"num_inference_steps": 5}])


def _controlnet(component: str) -> Stock:
    control = made("controlnet").module
    scheduler = diffusers.UniPCMultistepScheduler(**BETAS)
    pipeline = _sd("StableDiffusionControlNetPipeline", scheduler, controlnet=control)
    return Stock(pipeline, {**GUIDED, "image": PICTURE}, component)


def _ddpm() -> Stock:
    pipeline = diffusers.DDPMPipeline(made("unet").module, diffusers.DDPMScheduler(**BETAS))
    return Stock(pipeline, {"output_type": "np"}, scheduler=diffusers.DDIMScheduler(**BETAS, steps_offset=1))


def _sd3(scheduler: str) -> Stock:
    names = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3", "vae")
    flow = getattr(diffusers, scheduler)(shift=3.0)
    transformer = made("sd3").module
    pipeline = diffusers.StableDiffusion3Pipeline(**dict.fromkeys(names), transformer=transformer, scheduler=flow)
    run = {**GUIDED, **POOLED, "height": 64, "width": 64, "output_type": "latent"}
    return Stock(pipeline, run, "transformer", scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0))


def _flux(**guided: Any) -> Stock:
    names = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "vae")
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipeline = diffusers.FluxPipeline(**dict.fromkeys(names), transformer=made("flux").module, scheduler=flow)
    run = {"prompt_embeds": torch.ones(1, 5, 8), "pooled_prompt_embeds": torch.ones(1, 8), **guided}
    run |= {"height": 64, "width": 64, "output_type": "latent"}
    other = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    return Stock(pipeline, run, "transformer", 1 + bool(guided), scheduler=other)


def _two_transformers(component: str) -> Stock:
    """The first transformer draws at timesteps above the boundary, the second one below it."""
    parts = {"transformer": made("wan").module, "transformer_2": made("wan").module, "boundary_ratio": 0.7}
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    pipeline = diffusers.WanPipeline(tokenizer=None, text_encoder=None, vae=None, scheduler=flow, **parts)
    run = {**GUIDED, "height": 64, "width": 64, "num_frames": 5, "num_inference_steps": 8, "output_type": "latent"}
    other = diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0)
    return Stock(pipeline, run, component, 2, [{"num_inference_steps": 12}], other)


STOCK = {
    "plms": lambda: _text_to_image("PNDMScheduler", skip_prk_steps=True, steps_offset=1),
    "heun": lambda: _text_to_image("HeunDiscreteScheduler"),
    "euler ancestral": lambda: _text_to_image("EulerAncestralDiscreteScheduler"),
    "unipc": lambda: _text_to_image("UniPCMultistepScheduler"),
    "image to image": _image_to_image,
    "inpainting": _inpaint,
    "controlled": lambda: _controlnet("unet"),
    "controlnet itself": lambda: _controlnet("controlnet"),
    "ddpm": _ddpm,
    "sd3": lambda: _sd3("FlowMatchEulerDiscreteScheduler"),
    "sd3 heun": lambda: _sd3("FlowMatchHeunDiscreteScheduler"),
    "wan's first transformer": lambda: _two_transformers("transformer"),
    "wan's second transformer": lambda: _two_transformers("transformer_2"),
    "flux": _flux,
    "flux with true guidance": lambda: _flux(
        true_cfg_scale=2.0, negative_prompt_embeds=torch.zeros(1, 5, 8), negative_pooled_prompt_embeds=torch.zeros(1, 8)
    ),
}
