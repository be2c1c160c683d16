"""CLIP score, caption retrieval and class accuracy by an open_clip model that lies in a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip import create_model_and_transforms, get_input_dtype, get_model_config, get_tokenizer, list_models
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from benchmarks.quality.pictures import read
from benchmarks.specs.metrics import AMONG
from dipgo.errors import DipgoError, unknown

CONFIG = "open_clip_config.json"
PRECISIONS = ("fp32", "fp16")
_PICKLES = ("*.bin", "*.pt", "*.pth")


class ClipJudge:
    """Scores pictures against captions with the open_clip model of one folder.

    The folder is in open_clip's own format: `open_clip_config.json`, one safetensors file and, where the
    config names a Hugging Face tokenizer, the tokenizer's files beside them. Nothing is downloaded. Weights
    may be stored in float16. `precision` is what the towers compute in, "fp32" or "fp16"; cosines and their
    means are float32's always, as a mean of float16 cosines is not exact. `expected` is open_clip's name of
    the architecture that the folder must hold, such as ViT-g-14; it does not tell two trainings of it apart.

    Raises `DipgoError`, before anything is loaded, if the folder lacks a part, holds pickled weights or
    another architecture.
    """

    def __init__(
        self, folder: str | PathLike, device: str = "cpu", precision: str = "fp32", expected: str | None = None
    ) -> None:
        if precision not in PRECISIONS:
            raise unknown("precision of a CLIP model", precision, PRECISIONS)
        _check(Path(folder), expected)
        source = f"local-dir:{folder}"
        try:
            self.model, _, self.preprocess = create_model_and_transforms(source, precision=precision, device=device)
            self.tokenizer = get_tokenizer(source)
        except (OSError, SafetensorError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise DipgoError(f"CLIP model {folder} cannot be loaded: {reason}; fetch it again") from error
        self.model.eval().requires_grad_(False)
        self.device, self.dtype = device, get_input_dtype(precision)
        self._texts: dict[str, Tensor] = {}  # caption -> feature: many runs share their prompts

    def scores(self, images: Tensor, captions: Sequence[str]) -> np.ndarray:
        """CLIP score of each picture with its own caption, 100 max(cosine, 0): float32 [n].

        `images` are the pictures' features [n, d] by `image_features`.
        """
        _check_pairs(images, captions)
        return (100 * (images * self.text_features(captions)).sum(dim=1).clamp(min=0)).numpy()

    def retrieval(
        self, images: Tensor, captions: Sequence[str], rows: Sequence[int], among: int = AMONG, seed: int = 0
    ) -> np.ndarray:
        """Whether each picture's own caption scores highest among `among` captions (chance: 1 / among): bool [n].

        `images` are the features of the pictures of captions[rows]. The other `among` - 1 captions are drawn
        without replacement from those that differ from the picture's own; the draw depends on `seed` and the
        picture's row alone. A tie counts as a miss.
        """
        _check_pairs(images, rows)
        distinct = sorted(set(captions))
        if not 2 <= among <= len(distinct):
            raise DipgoError(
                f"cannot choose among {among} captions of {len(distinct)} distinct ones; "
                f"pass 2 <= among <= {len(distinct)}"
            )
        index = {caption: place for place, caption in enumerate(distinct)}
        similarity = images @ self.text_features(distinct).T
        hits = []
        for row, similar in zip(rows, similarity, strict=True):
            own = index[captions[row]]
            others = np.random.default_rng([seed, row]).choice(len(distinct) - 1, among - 1, replace=False)
            others += others >= own  # positions in `distinct` without the picture's own
            hits.append(bool(similar[own] > similar[others].max()))
        return np.array(hits)

    @torch.inference_mode()
    def image_features(self, paths: Sequence[str | PathLike], batch: int = 64, progress: bool = True) -> Tensor:
        """Unit features of pictures, float32 [n, d] on the CPU; `DipgoError` names an unreadable picture."""
        if not paths:
            raise DipgoError("no pictures to score; generate the pictures first")
        parts = []
        for start in tqdm(range(0, len(paths), batch), desc="CLIP images", disable=not progress):
            pictures = [self.preprocess(read(path)) for path in paths[start : start + batch]]
            parts.append(self.model.encode_image(torch.stack(pictures).to(self.device, self.dtype)).float())
        return normalize(torch.cat(parts), dim=1).cpu()

    @torch.inference_mode()
    def text_features(self, captions: Sequence[str], batch: int = 64) -> Tensor:
        """Unit features of captions, float32 [n, d] on the CPU; each distinct caption is encoded once."""
        new = [caption for caption in dict.fromkeys(captions) if caption not in self._texts]
        for start in range(0, len(new), batch):
            part = new[start : start + batch]
            encoded = self.model.encode_text(self.tokenizer(part).to(self.device)).float()
            self._texts.update(zip(part, normalize(encoded, dim=1).cpu(), strict=True))
        return torch.stack([self._texts[caption] for caption in captions])


def class_similarity(images: Tensor, names: Sequence[str], file: str | PathLike) -> tuple[np.ndarray, np.ndarray]:
    """How close pictures of classes are to their class: cosines, float32 [n], and hits, bool [n].

    `images` are unit features [n, d], `names` their classes. `file` is a safetensors file of every class's unit
    centroid by its name: the mean feature of its real pictures, normalised. A hit is a picture whose nearest
    centroid is its own class's. `DipgoError` where the file is absent or lacks a class.
    """
    _check_pairs(images, names)
    try:
        centroids = load_file(file)
    except (OSError, SafetensorError) as error:
        raise DipgoError(f"no class centroids in {file} ({error}): is this model conditioned on classes?") from error
    known = sorted(centroids)
    for name in names:
        if name not in centroids:
            raise DipgoError(f"{file}: {unknown('class', name, known)}")
    similarity = images @ torch.stack([centroids[name].float() for name in known]).T
    own = torch.tensor([known.index(name) for name in names])
    return similarity[torch.arange(len(own)), own].numpy(), (similarity.argmax(dim=1) == own).numpy()


def _check(folder: Path, expected: str | None) -> None:
    """open_clip would fall back to a pickle, or to random weights, without a word."""
    if not folder.is_dir():
        raise DipgoError(f"no CLIP model at {folder}; pass the folder of an open_clip model")
    if not (folder / CONFIG).is_file():
        raise DipgoError(f"CLIP model {folder} lacks {CONFIG}")
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise DipgoError(f"CLIP model {folder} holds pickled weights: {pickles[0]}; remove them")
    weights = sorted(path.name for path in folder.glob("*.safetensors"))
    if len(weights) != 1:
        raise DipgoError(f"CLIP model {folder} must hold one safetensors file, not {len(weights)}")
    if expected is not None:
        _check_architecture(folder, expected)


def _check_architecture(folder: Path, expected: str) -> None:
    wanted = get_model_config(expected)
    if wanted is None:
        raise unknown("open_clip model", expected, list_models())
    try:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["model_cfg"]
    except (ValueError, KeyError, TypeError) as error:
        raise DipgoError(f"CLIP model {folder}: {CONFIG} names no model ({error}); fetch it again") from error
    found = _flat(found)
    for key, value in _flat(wanted).items():
        if found.get(key) != value:
            raise DipgoError(f"CLIP model {folder} is no {expected}: {key} is {found.get(key)}, not {value}")


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _check_pairs(images: Tensor, texts: Sequence[str]) -> None:
    if len(images) != len(texts):
        raise DipgoError(f"{len(images)} pictures but {len(texts)} captions; pass one caption a picture")
