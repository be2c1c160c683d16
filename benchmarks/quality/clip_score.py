"""Computes CLIP scores, caption retrieval and class accuracy with an open_clip model that lies in a folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from open_clip import create_model_and_transforms, get_model_config, get_tokenizer, list_models
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from benchmarks.quality.pictures import read
from benchmarks.specs.files import flat
from benchmarks.specs.metrics import AMONG
from dipgo.errors import DipgoError, unknown

CONFIG = "open_clip_config.json"
_PICKLES = ("*.bin", "*.pt", "*.pth")


class ClipJudge:
    """The open_clip model of one folder, which tells how well a picture shows a caption.

    The folder is in open_clip's own format: `open_clip_config.json`, one safetensors file and, where the config names a
    Hugging Face tokenizer, the tokenizer's files beside them. Nothing is downloaded. Weights may be stored in float16;
    everything is computed in float32.
    """

    def __init__(self, folder: str | PathLike, device: str = "cpu", expected: str | None = None) -> None:
        """Load the model.

        expected: open_clip's name of the architecture that the folder must hold, such as ViT-g-14. It does not tell two
            trainings of one architecture apart.

        Raises a `DipgoError`, before anything is loaded, if the folder lacks a part, or holds pickled weights or
        another architecture.
        """
        _check(Path(folder), expected)
        source = f"local-dir:{folder}"
        try:
            self.model, _, self.preprocess = create_model_and_transforms(source, precision="fp32", device=device)
            self.tokenizer = get_tokenizer(source)
        except (OSError, SafetensorError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise DipgoError(f"CLIP model {folder} cannot be loaded: {reason}; fetch it again") from error
        self.model.eval().requires_grad_(False)
        self.device = device
        self._texts: dict[str, Tensor] = {}  # the feature of each caption, as many runs share their prompts

    def scores(self, images: Tensor, captions: Sequence[str]) -> np.ndarray:
        """Return the CLIP score of each picture with its caption, 100 max(cosine, 0): float32 [n].

        images: the pictures' features [n, d] by `image_features`.
        """
        _check_pairs(images, captions)
        return (100 * (images * self.text_features(captions)).sum(dim=1).clamp(min=0)).numpy()

    def retrieval(
        self, images: Tensor, captions: Sequence[str], rows: Sequence[int], among: int = AMONG, seed: int = 0
    ) -> np.ndarray:
        """Return whether the right caption scores highest among `among` captions (chance: 1 / among): bool [n].

        images: the features of the pictures of captions[rows].
        captions: all captions. The `among` - 1 wrong ones of a picture are drawn from them without replacement.
        seed: with a picture's row, the only thing that the draw depends on.

        A tie counts as a miss.
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
        """Return the unit features of pictures, float32 [n, d] on the CPU; a `DipgoError` names an unreadable one."""
        if not paths:
            raise DipgoError("no pictures to score; generate the pictures first")
        parts = []
        for start in tqdm(range(0, len(paths), batch), desc="CLIP images", disable=not progress):
            pictures = [self.preprocess(read(path)) for path in paths[start : start + batch]]
            parts.append(self.model.encode_image(torch.stack(pictures).to(self.device)))
        return normalize(torch.cat(parts), dim=1).cpu()

    @torch.inference_mode()
    def text_features(self, captions: Sequence[str], batch: int = 64) -> Tensor:
        """Return the unit features of captions, float32 [n, d] on the CPU. Each distinct caption is encoded once."""
        new = [caption for caption in dict.fromkeys(captions) if caption not in self._texts]
        for start in range(0, len(new), batch):
            part = new[start : start + batch]
            encoded = self.model.encode_text(self.tokenizer(part).to(self.device))
            self._texts.update(zip(part, normalize(encoded, dim=1).cpu(), strict=True))
        return torch.stack([self._texts[caption] for caption in captions])


def class_similarity(images: Tensor, names: Sequence[str], file: str | PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Return the cosine of each picture with its class, float32 [n], and whether no class is nearer, bool [n].

    images: unit features [n, d].
    names: the classes of the pictures.
    file: a safetensors file that holds the unit centroid of every class by its name: the normalised mean feature of its
        real pictures.

    Raises a `DipgoError` where the file is absent or lacks a class.
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
    """Raise a `DipgoError` for a folder from which open_clip would load a pickle, or random weights, without a word."""
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
        config = flat(json.loads((folder / CONFIG).read_text(encoding="utf-8"))["model_cfg"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DipgoError(f"CLIP model {folder}: {CONFIG} names no model ({error}); fetch it again") from error
    for key, value in flat(wanted).items():
        if config.get(key) != value:
            raise DipgoError(f"CLIP model {folder} is no {expected}: {key} is {config.get(key)}, not {value}")


def _check_pairs(images: Tensor, texts: Sequence[str]) -> None:
    if len(images) != len(texts):
        raise DipgoError(f"{len(images)} pictures but {len(texts)} captions; pass one caption a picture")
