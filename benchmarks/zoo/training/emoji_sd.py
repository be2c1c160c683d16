"""Trains emoji-sd: a latent diffusion model of Stable Diffusion 1.5's shape, with its text encoder.

``--export`` writes the averaged weights of the last checkpoint as a diffusers folder into ``benchmarks/zoo``
instead of training; a training that was interrupted goes on from its checkpoint.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from benchmarks.zoo.training.common import (
    ZOO,
    Average,
    Clock,
    arguments,
    rank,
    save_atomically,
    synchronise,
    write_card,
)
from benchmarks.zoo.training.pictures import load
from benchmarks.zoo.training.tokens import CONTEXT, train_tokenizer

log = logging.getLogger(__name__)

SEED, BATCH, RATE, WARM_UP = 0, 64, 1e-3, 200  # batch: a process
CAPTION_DROPOUT, SNR_CAP, CHECKPOINT_SECONDS = 0.1, 5.0, 240
NOISE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)


def build(tokenizer: CLIPTokenizer) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Untrained U-Net (Stable Diffusion 1.5's blocks, narrow) and text encoder."""
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=8,
        block_out_channels=(32, 64, 96, 128),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        attention_head_dim=8,
        cross_attention_dim=96,
        norm_num_groups=8,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=384,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    return unet, text


def loss_of(
    unet: nn.Module, text: nn.Module, latents: Tensor, tokens: Tensor, noise: DDPMScheduler, snr: Tensor
) -> Tensor:
    """Epsilon prediction at stratified timesteps, weighted by min(SNR, cap) / SNR."""
    n = len(latents)
    steps = ((torch.randperm(n) + torch.rand(n)) * (len(snr) / n)).long()
    target = torch.randn_like(latents)
    noisy = noise.add_noise(latents, target, steps)
    predicted = unet(noisy, steps, encoder_hidden_states=text(tokens).last_hidden_state).sample
    weight = snr[steps].clamp(max=SNR_CAP) / snr[steps]
    return (weight * (predicted - target).square().mean((1, 2, 3))).mean()


def train(work: Path, minutes: float) -> None:
    torch.manual_seed(SEED)
    data = load(work)
    chosen = torch.cat([torch.from_numpy(data.sets[key]) for key in ("train", "seen")])
    latents = torch.load(work / "latents.pt", weights_only=True)[chosen]
    tokenizer = train_tokenizer(data.captions)
    tokens = tokenizer(
        [data.captions[i] for i in chosen], padding="max_length", max_length=CONTEXT, return_tensors="pt"
    ).input_ids
    empty = tokenizer("", padding="max_length", max_length=CONTEXT, return_tensors="pt").input_ids
    models = nn.ModuleList(build(tokenizer))
    average = Average(models, 0.999)
    optimiser = torch.optim.AdamW(models.parameters(), RATE, weight_decay=0.01, fused=True)
    noise = DDPMScheduler(**NOISE)
    snr = noise.alphas_cumprod / (1 - noise.alphas_cumprod)
    updates, spent, recent, losses = 0, 0.0, [], []
    checkpoint = work / "emoji_sd.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        models.load_state_dict(state["raw"])
        average.model.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        updates = average.updates = state["updates"]
        spent, losses = state["seconds"], state["losses"]
    torch.manual_seed(SEED + rank() + 10 * updates)
    clock = Clock(minutes, spent)
    progress, saved = clock.progress, clock.seconds
    bar = tqdm(total=round(minutes * 60), initial=round(spent), unit="s", mininterval=30, disable=rank() > 0)
    while progress < 1:
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1.0, (updates + 1) / WARM_UP) * max(0.002, 1 - progress)
        picked = torch.randint(len(chosen), (BATCH,))
        captions = torch.where(torch.rand(BATCH, 1) < CAPTION_DROPOUT, empty, tokens[picked])
        loss = loss_of(*models, latents[picked], captions, noise, snr)
        optimiser.zero_grad()
        loss.backward()
        progress = synchronise([models], clock.progress)
        nn.utils.clip_grad_norm_(models.parameters(), 1.0)
        optimiser.step()
        average.update(models)
        updates += 1
        recent.append(loss.item())
        if updates % 100 == 0:
            losses.append(round(sum(recent) / len(recent), 5))
            recent = []
            log.info("update %d, %.0f s: loss %.4f", updates, clock.seconds, losses[-1])
        if rank() == 0 and (clock.seconds - saved > CHECKPOINT_SECONDS or progress >= 1):
            saved = clock.seconds
            save_atomically(
                {
                    "raw": models.state_dict(),
                    "average": average.model.state_dict(),
                    "losses": losses,
                    "optimiser": optimiser.state_dict(),
                    "updates": updates,
                    "seconds": clock.seconds,
                },
                checkpoint,
            )
        bar.update(round(clock.seconds) - bar.n)


def export(work: Path, target: Path) -> None:
    """The last checkpoint's averaged weights as float16 diffusers folder, replaced whole."""
    state = torch.load(work / "emoji_sd.pt", weights_only=True)
    tokenizer = train_tokenizer(load(work).captions)
    models = nn.ModuleList(build(tokenizer))
    models.load_state_dict(state["average"])
    unet, text = models
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(work / "vae"),
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=PNDMScheduler(**NOISE, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    temporary = target.with_name(target.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    pipeline.to(dtype=torch.float16).save_pretrained(temporary)
    # The autoencoder's config would name the scratch folder it came from.
    config = temporary / "vae" / "config.json"
    kept = {key: value for key, value in json.loads(config.read_text()).items() if key != "_name_or_path"}
    config.write_text(json.dumps(kept, indent=2) + "\n")
    # transformers loads in the config's type, diffusers in float32: without this the parts would not fit together.
    config = temporary / "text_encoder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": "float32"}, indent=2) + "\n")
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    write_card(
        work,
        "emoji-sd",
        {
            "seed": SEED,
            "updates": state["updates"],
            "batch": BATCH,
            "seconds": round(state["seconds"]),
            "parameters_unet": sum(p.numel() for p in unet.parameters()),
            "parameters_text_encoder": sum(p.numel() for p in text.parameters()),
            "loss_of_last_1000_updates": round(sum(state["losses"][-10:]) / max(1, len(state["losses"][-10:])), 4),
        },
    )


def main() -> None:
    args = arguments(__doc__, minutes=90, flags=("export",))
    if args.export:
        export(args.work, ZOO / "emoji-sd")
    else:
        train(args.work, args.minutes)


if __name__ == "__main__":
    main()
