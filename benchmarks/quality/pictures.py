"""Reads pictures, the one way for all metrics: as people see them, or refused by name."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from dipgo.errors import DipgoError, first_line

log = logging.getLogger(__name__)

_SEEN_AS_THEY_ARE = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LA", "PA", "RGBA", "La", "RGBa")
_NAMED = 5  # files that a line names before it only counts them


def read(path: str | PathLike) -> Image.Image:
    """Return one picture as RGB, as people see it.

    Transparent parts lie on white, 16-bit greys are scaled to 8 bits, and the camera's orientation is followed.
    Raises a `DipgoError` that names the file where it is missing, no whole picture, larger than Pillow's limit
    (`PIL.Image.MAX_IMAGE_PIXELS`), holds several pictures, or has values whose range is unknown (32-bit integers and
    floats) or colours that are not converted (Lab).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                return _rgb(picture)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = f"at most {Image.MAX_IMAGE_PIXELS / 1e6:.0f} megapixels are read"
        raise DipgoError(f"picture {path} is too large; {limit}, scale it down") from error
    except DipgoError as error:
        raise DipgoError(f"picture {path} {error}") from None
    except Exception as error:  # a broken file makes Pillow raise almost anything
        reason = first_line(error).removesuffix(f": {str(path)!r}")
        raise DipgoError(f"cannot read picture {path}: {reason}; delete it and generate it again") from error


def _rgb(picture: Image.Image) -> Image.Image:
    """Convert an opened picture; a `DipgoError` goes on where the picture's name ends."""
    if getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO":  # what a phone adds to a JPEG is no picture
        raise DipgoError(f"holds {picture.n_frames} pictures; save the one that is meant")
    sixteen = picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in ("PNG", "PPM"))
    if not sixteen and picture.mode not in _SEEN_AS_THEY_ARE:
        raise DipgoError(f"has pixels of the kind {picture.mode!r}, whose colours are not defined; save it as RGB")
    picture = ImageOps.exif_transpose(picture)
    if sixteen:
        picture = _from_16_bits(picture)
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    if picture.mode in ("La", "RGBa"):  # colours that are multiplied by their opacity
        picture = picture.convert(picture.mode.upper())
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def _from_16_bits(picture: Image.Image) -> Image.Image:
    """Scale greys of 0..65535 to 0..255; the grey that stands for transparency becomes transparent."""
    values = np.asarray(picture).astype(np.int64)
    scaled = Image.fromarray(np.rint(values / 257).astype(np.uint8))
    if "transparency" in picture.info:
        scaled.putalpha(Image.fromarray(np.where(values == picture.info["transparency"], 0, 255).astype(np.uint8)))
    return scaled


def load(paths: Sequence[str | PathLike]) -> Tensor:
    """Return pictures of one size, uint8 [n, 3, h, w]; a `DipgoError` names one that cannot be read or differs."""
    if not paths:
        raise DipgoError("no pictures given; pass at least one path")
    arrays = [np.asarray(read(path)) for path in paths]
    for path, array in zip(paths, arrays, strict=True):
        if array.shape != arrays[0].shape:
            sizes = [f"{width} x {height}" for height, width, _ in (array.shape, arrays[0].shape)]
            raise DipgoError(f"picture {path} is {sizes[0]}, but {paths[0]} is {sizes[1]}")
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def picture_files(folder: str | PathLike) -> list[str]:
    """Return the paths of the pictures in a folder and its subfolders, sorted.

    A picture is what has an ending that Pillow opens, in any case. Every other file is named in a warning, so that
    none is passed over in silence. Raises `DipgoError` where there is no folder or no picture in it.
    """
    if not Path(folder).is_dir():
        raise DipgoError(f"no folder of pictures at {folder}; generate the pictures first")
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    files = sorted(str(path) for path in Path(folder).rglob("*") if not path.is_dir())
    pictures = [path for path in files if Path(path).suffix.lower() in endings]
    if not pictures:
        raise DipgoError(f"folder {folder} holds no picture; generate the pictures first")
    others = [os.path.relpath(path, folder) for path in files if Path(path).suffix.lower() not in endings]
    if others:
        more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        names = ", ".join(others[:_NAMED]) + more
        log.warning("%s: %d pictures; left out, as no pictures by their endings: %s", folder, len(pictures), names)
    return pictures
