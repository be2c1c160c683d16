"""emoji-mmdit: a joint-attention transformer with FLUX's two kinds of blocks, trained from nothing by rectified flow.

Text and picture are two streams in the first blocks and one in the others. Both text inputs of FLUX, the tokens and
their summary, come from emoji-sd's frozen text encoder.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from diffusers.training_utils import compute_density_for_timestep_sampling
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from benchmarks.supply import zoo
from benchmarks.zoo.training import judge
from benchmarks.zoo.training.common import ZOO, batches
from benchmarks.zoo.training.decoder import live_vae
from benchmarks.zoo.training.denoisers import BATCH, DROPOUT, captioned
from benchmarks.zoo.training.drawing import MEASURED, features, with_newest_decoder
from benchmarks.zoo.training.loop import Card, Training

NAME, SOURCE = "emoji-mmdit", ZOO / "emoji-sd"
TOKENS = 20
CALL = {"height": 64, "width": 64, "max_sequence_length": TOKENS, "true_cfg_scale": 4.0, "negative_prompt": ""}
"""What the stock pipeline must be told besides the caption."""
SHARED = {"vae": "vae", "text_encoder": "text_encoder", "tokenizer": "tokenizer"}
SHARED |= {"text_encoder_2": "text_encoder", "tokenizer_2": "tokenizer"}


def build() -> FluxTransformer2DModel:
    """An untrained transformer: 5 blocks of two streams and 10 of one, 96 wide; 16 tokens of 2 x 2 x 8 latents."""
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=32,
        num_layers=5,
        num_single_layers=10,
        attention_head_dim=16,
        num_attention_heads=6,
        joint_attention_dim=96,
        pooled_projection_dim=96,
        guidance_embeds=False,
        axes_dims_rope=(4, 6, 6),
    )
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
            if name == "proj_out" or ".norm" in name or "norm_out" in name:
                nn.init.zeros_(module.weight)  # blocks start as identities, and the prediction at zero
    return model


def pipeline_of(model: nn.Module) -> FluxPipeline:
    text = CLIPTextModel.from_pretrained(SOURCE / "text_encoder").eval().requires_grad_(False)
    tokenizer = CLIPTokenizer.from_pretrained(SOURCE / "tokenizer")
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=live_vae(),
        text_encoder=text,
        tokenizer=tokenizer,
        text_encoder_2=text,
        tokenizer_2=tokenizer,
        transformer=model,
    )


def pack(latents: Tensor) -> Tensor:
    """Latents [n, 8, 8, 8] as FLUX's tokens [n, 16, 32]."""
    n, channels, height, width = latents.shape
    return FluxPipeline._pack_latents(latents, n, channels, height, width)


def objective(work: Path, model: FluxTransformer2DModel) -> Callable[[float], Tensor]:
    """Rectified flow: the squared error of the velocity, noise minus latents, at logit-normal times."""
    data, pipeline = captioned(work), pipeline_of(model)

    @torch.no_grad()
    def encode(captions: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        return pipeline.encode_prompt(captions, None, max_sequence_length=TOKENS)

    (texts, pooled, text_ids), (no_text, no_pooled, _) = encode(data.captions), encode([""])
    image_ids = FluxPipeline._prepare_latent_image_ids(1, 4, 4, "cpu", torch.float32)
    tokens, rows = pack(data.latents), batches(len(data.captions), BATCH)

    def loss(progress: float) -> Tensor:
        picked, dropped = next(rows), torch.rand(BATCH) < DROPOUT
        time = compute_density_for_timestep_sampling("logit_normal", BATCH, logit_mean=0.0, logit_std=1.0)
        clean, noise = tokens[picked], torch.randn(BATCH, *tokens.shape[1:])
        mix = time.view(-1, 1, 1)
        velocity = model(
            hidden_states=(1 - mix) * clean + mix * noise,
            timestep=time,
            encoder_hidden_states=torch.where(dropped[:, None, None], no_text, texts[picked]),
            pooled_projections=torch.where(dropped[:, None], no_pooled, pooled[picked]),
            txt_ids=text_ids,
            img_ids=image_ids,
        ).sample
        return (velocity - (noise - clean)).square().mean()

    return loss


@torch.no_grad()
def draw(pipeline: FluxPipeline, captions: list[str], steps: int = 20, part: int = 50) -> Tensor:
    """Returns pictures [n, 3, 64, 64] in [0, 1]; caption i starts from the noise of seed i."""
    pipeline.set_progress_bar_config(disable=True)
    drawn = []
    for start in range(0, len(captions), part):
        some = captions[start : start + part]
        call: dict[str, Any] = CALL | {"negative_prompt": [""] * len(some), "num_inference_steps": steps}
        call["generator"] = [torch.Generator().manual_seed(start + i) for i in range(len(some))]
        drawn.append(pipeline(some, output_type="pt", **call).images)
    return torch.cat(drawn)


@torch.no_grad()
def measure(work: Path, model: nn.Module) -> Card:
    """Retrieval by the newest judge among 100 captions of each set."""
    pipeline, critic, card = with_newest_decoder(pipeline_of(model)), judge.newest(), {}
    for key in ("seen", "held-out"):
        captions = [prompt.caption for prompt in zoo.prompts(key)][:MEASURED]
        texts = critic.clip.encode_text(judge.tokenize(captions), normalize=True)
        card[f"top1_of_100_{key}"] = round(judge.retrieval(features(critic, draw(pipeline, captions)), texts), 4)
    return card


def install(work: Path, model: nn.Module, card: Card) -> None:
    """Writes a diffusers folder in float16 whose shared parts are links to emoji-sd's."""
    target, temporary = ZOO / NAME, ZOO / f"unfinished-{NAME}"
    shutil.rmtree(temporary, ignore_errors=True)
    pipeline_of(model).to(dtype=torch.float16).save_pretrained(temporary)
    for part, source in SHARED.items():
        shutil.rmtree(temporary / part)
        (temporary / part).symlink_to(os.path.relpath(SOURCE / source, target), target_is_directory=True)
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)


TRAINING = Training(NAME, 120, 1e-3, build, objective, measure, install)
