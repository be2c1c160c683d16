"""Features of pictures by a named protocol: what becomes of the pixels, and the network that sees them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from cleanfid.fid import get_files_features
from cleanfid.resize import build_resizer, make_resizer
from cleanfid.utils import EXTENSIONS
from PIL import Image
from torch.nn.functional import interpolate
from torchvision.transforms import CenterCrop, Compose, Resize

from benchmarks.quality import networks
from benchmarks.quality.fidelity import read
from benchmarks.quality.networks import Network
from dipgo.errors import DipgoError

# Twice the embedded models' 64 pixels. Measured on 400 emoji drawn in two styles: the nearest neighbour in the
# other style is the same emoji for 48 % of them at 64, 62 % at 128 and 66 % at 224 (three times the pixels).
EFFLITE0_SIZE = 128
INCEPTION_SIZE = 299
CROP = 512  # sides of the real pictures in the paper's FID
_SUFFIXES = EXTENSIONS - {"npy"}  # arrays beside the pictures are none

Pixels = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Protocol:
    """A way from pictures to features. Distances within one protocol can be compared, no others.

    `resize` maps uint8 [h, w, 3] to float32 [s, s, 3] in 0..255, which `network(weight file, device)` takes; `crop`,
    uint8 to uint8, comes before it for real pictures alone. `weights`: the weight file's name in its folder, with
    wildcards; empty where the network brings its own.
    """

    name: str
    resize: Pixels
    network: Callable[[Path | None, str], Network]
    weights: str = ""
    crop: Pixels | None = None

    def weight_file(self, folder: Path | None) -> Path | None:
        """The network's weights in a folder; `DipgoError` where there is not one such file."""
        if not self.weights:
            return None
        if folder is None:
            raise DipgoError(f"the protocol {self.name!r} needs a network; pass the folder of its {self.weights}")
        found = sorted(folder.glob(self.weights))
        if len(found) != 1:
            raise DipgoError(f"network {folder} must hold one {self.weights}, not {len(found)}")
        return found[0]


def bilinear(pixels: np.ndarray) -> np.ndarray:
    """To 299 x 299 as pytorch-fid does it: four neighbours, whatever the factor."""
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    size = INCEPTION_SIZE, INCEPTION_SIZE
    return interpolate(tensor, size, mode="bilinear", align_corners=False)[0].permute(1, 2, 0).numpy()


def centre(pixels: np.ndarray) -> np.ndarray:
    """The shorter side to 512, then the middle 512 x 512."""
    return np.array(Compose([Resize(CROP), CenterCrop(CROP)])(Image.fromarray(pixels)))


EFFLITE0 = Protocol("efflite0", make_resizer("PIL", False, "bicubic", (EFFLITE0_SIZE,) * 2), networks.efflite0)
CLEAN = Protocol("clean", build_resizer("clean"), networks.inception_clean, networks.TORCHSCRIPT)
PAPER = Protocol("paper", bilinear, networks.inception_paper, "*.safetensors", centre)
PROTOCOLS = {protocol.name: protocol for protocol in (EFFLITE0, CLEAN, PAPER)}


def features(
    pictures: str | PathLike | Sequence[str | PathLike],
    protocol: Protocol = EFFLITE0,
    folder: Path | None = None,
    *,
    real: bool = False,
    batch: int = 16,
    device: str = "cpu",
    progress: bool = True,
) -> np.ndarray:
    """Features of a folder's pictures (sorted by path, subfolders included) or of a list's (in its order).

    `folder` holds the weights of the protocol's network, `real` says that the pictures are real ones. Reading
    and batching are clean-fid's. On a CPU small batches are the faster ones.

    Returns float32 [n, d]. `DipgoError` for a missing or empty folder, a broken network or picture, by name.
    """
    paths, network = picture_files(pictures), protocol.network(protocol.weight_file(folder), device)
    try:
        return get_files_features(
            paths,
            model=network,
            num_workers=0,
            batch_size=batch,
            device=torch.device(device),
            custom_fn_resize=protocol.resize,
            custom_image_tranform=protocol.crop if real else None,
            description="features",
            verbose=progress,
        )
    except (OSError, SyntaxError):  # PIL does not always name the picture: find it
        for path in paths:
            read(path)
        raise


def picture_files(pictures: str | PathLike | Sequence[str | PathLike]) -> list[str]:
    """The paths of a folder's pictures, sorted, or of a list's; `DipgoError` where there is none."""
    if not isinstance(pictures, str | PathLike):
        paths = [os.fspath(path) for path in pictures]
        place = "the list"
    else:
        if not Path(pictures).is_dir():
            raise DipgoError(f"no folder of pictures at {pictures}; generate the pictures first")
        paths = sorted(str(path) for path in Path(pictures).rglob("*") if path.suffix[1:] in _SUFFIXES)
        place = f"folder {pictures}"
    if not paths:
        raise DipgoError(f"{place} holds no picture; generate the pictures first")
    return paths
