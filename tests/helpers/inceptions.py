"""Small pictures, and the files of both Inception networks with random weights."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from cleanfid.inception_pytorch import fid_inception_v3
from PIL import Image
from pytest import MonkeyPatch
from safetensors.torch import save_file
from torch import nn

from benchmarks.quality.networks import TORCHSCRIPT


class _Scripted(nn.Module):
    """As in clean-fid's file, the layers before the classifier are apart; these are few."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(192, 2048))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.layers(pictures)


def write_clean(folder: Path) -> Path:
    """clean-fid's TorchScript file."""
    folder.mkdir()
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(0)
        torch.jit.script(_Scripted()).save(str(folder / TORCHSCRIPT))
    return folder


def their_inception(weights: dict[str, torch.Tensor] | None = None) -> nn.Module:
    """pytorch-fid's whole network with given weights or untrained ones, by clean-fid's copy of it."""
    with MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it asks torchvision in an old way
        patch.setattr("cleanfid.inception_pytorch.load_state_dict_from_url", lambda *_, **__: weights)
        if weights is None:
            patch.setattr(nn.Module, "load_state_dict", lambda *_: None)
        return fid_inception_v3().eval()


def write_paper(folder: Path) -> Path:
    """pytorch-fid's state dict as safetensors; in float16, to be half as large as the real one."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    weights = {name: tensor for name, tensor in their_inception().state_dict().items() if "num_batches" not in name}
    for name, tensor in weights.items():
        if name.endswith("conv.weight"):  # features that neither vanish nor explode
            tensor.normal_(std=(2 / tensor[0].numel()) ** 0.5, generator=generator)
    save_file({name: tensor.half() for name, tensor in weights.items()}, folder / "pt_inception.safetensors")
    return folder


def save_noise(folder: Path, names: list[str], size: int = 64, seed: int = 0) -> list[Path]:
    random = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    for name in names:
        coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)  # smooth blobs, one seed a folder
        Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(folder / name)
    return [folder / name for name in names]
