"""Features of pictures by a named protocol: how pixels are resized, and the network that sees them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from cleanfid.resize import build_resizer, make_resizer
from PIL import Image
from torch.nn.functional import interpolate
from torchvision.transforms import CenterCrop, Compose, Resize
from tqdm import tqdm

from benchmarks.quality import networks
from benchmarks.quality.networks import Network
from benchmarks.quality.pictures import picture_files, read
from benchmarks.specs import metrics
from dipgo.errors import DipgoError

# Twice the embedded models' 64 pixels. Measured on 400 emoji drawn in two styles: the nearest neighbour in the
# other style is the same emoji for 48 % of them at 64, 62 % at 128 and 66 % at 224 (three times the pixels).
EFFLITE0_SIZE = 128
INCEPTION_SIZE = 299
CROP = 512
"""The width and height of the real pictures in the paper's FID."""
BATCH = 16
"""How many pictures the network sees at once. On a CPU few are faster."""

Pixels = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Protocol:
    """A way from pictures to features. Only distances within one protocol can be compared."""

    name: str
    resize: Pixels
    """Maps uint8 [h, w, 3] to float32 [s, s, 3] in 0..255."""
    network: Callable[[Path | None, str], Network]
    """Returns the network on a device, given its weight file."""
    weights: str = ""
    """The weight file's name in its folder, with wildcards; empty where the network brings its own weights."""
    crop: Pixels | None = None
    """What real pictures alone go through before `resize`: uint8 [h, w, 3] to uint8."""

    def weight_file(self, folder: Path | None) -> Path | None:
        """Return the network's weights in a folder; a `DipgoError` where the folder does not hold one such file."""
        if not self.weights:
            return None
        if folder is None:
            raise DipgoError(f"the protocol {self.name!r} needs a network; pass the folder of its {self.weights}")
        found = sorted(folder.glob(self.weights))
        if len(found) != 1:
            raise DipgoError(f"network {folder} must hold one {self.weights}, not {len(found)}")
        return found[0]


def bilinear(pixels: np.ndarray) -> np.ndarray:
    """Resize to 299 x 299 as pytorch-fid does: from four neighbours, whatever the factor."""
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    size = INCEPTION_SIZE, INCEPTION_SIZE
    return interpolate(tensor, size, mode="bilinear", align_corners=False)[0].permute(1, 2, 0).numpy()


def centre(pixels: np.ndarray) -> np.ndarray:
    """Resize the shorter side to 512 and cut out the middle 512 x 512."""
    return np.array(Compose([Resize(CROP), CenterCrop(CROP)])(Image.fromarray(pixels)))


EFFLITE0 = Protocol(metrics.EFFLITE0, make_resizer("PIL", False, "bicubic", (EFFLITE0_SIZE,) * 2), networks.efflite0)
CLEAN = Protocol(metrics.CLEAN, build_resizer("clean"), networks.inception_clean, networks.TORCHSCRIPT)
PAPER = Protocol(metrics.PAPER, bilinear, networks.inception_paper, "*.safetensors", centre)
PROTOCOLS = {protocol.name: protocol for protocol in (EFFLITE0, CLEAN, PAPER)}


@torch.inference_mode()
def features(
    pictures: str | PathLike | Sequence[str | PathLike],
    protocol: Protocol = EFFLITE0,
    folder: Path | None = None,
    *,
    real: bool = False,
    device: str = "cpu",
    progress: bool = True,
) -> np.ndarray:
    """Return the features of pictures, float32 [n, d].

    pictures: a folder, whose pictures are taken sorted by path, or paths, which keep their order.
    folder: holds the weight file of the protocol's network.
    real: whether the pictures are real ones, which the protocol may crop.

    Raises a `DipgoError` for a missing or empty folder, and one that names a broken network or picture.
    """
    paths = picture_files(pictures) if isinstance(pictures, str | PathLike) else pictures
    if not paths:
        raise DipgoError("the list holds no picture; generate the pictures first")
    network = protocol.network(protocol.weight_file(folder), device)
    crop = protocol.crop if real and protocol.crop else np.asarray
    found = []
    for start in tqdm(range(0, len(paths), BATCH), desc="features", disable=not progress):
        pixels = [protocol.resize(crop(np.array(read(path)))) for path in paths[start : start + BATCH]]
        pixels = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
        found.append(network(pixels.to(device)).cpu().numpy())
    return np.concatenate(found)
