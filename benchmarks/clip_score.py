"""CLIP score, caption retrieval and class accuracy by an open_clip model that lies in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
import open_clip
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from benchmarks.fidelity import read
from benchmarks.spec import unknown

CONFIG = "open_clip_config.json"
_PICKLES = ("*.bin", "*.pt", "*.pth")


class ClipJudge:
    """Scores pictures against captions with the open_clip model of one folder.

    The folder is in open_clip's own format: `open_clip_config.json`, one safetensors file and, where the
    config names a Hugging Face tokenizer, the tokenizer's files beside them. Nothing is downloaded. Weights
    may be stored in float16; everything is computed in float32, as a mean of float16 cosines is not exact.

    Raises ValueError, before anything is loaded, if the folder lacks a part or holds pickled weights.
    """

    def __init__(self, folder: str | PathLike, device: str = "cpu") -> None:
        _check(Path(folder))
        source = f"local-dir:{folder}"
        self.model, _, self.preprocess = open_clip.create_model_and_transforms(source, precision="fp32", device=device)
        self.model.eval().requires_grad_(False)
        self.tokenizer = open_clip.get_tokenizer(source)
        self.device = device
        self._texts: dict[str, Tensor] = {}  # caption -> feature: many runs share their prompts

    def scores(self, images: Tensor, captions: Sequence[str]) -> np.ndarray:
        """CLIP score of each picture with its own caption, 100 max(cosine, 0): float32 [n].

        `images` are the pictures' features [n, d] by `image_features`.
        """
        _check_pairs(images, captions)
        return (100 * (images * self.text_features(captions)).sum(dim=1).clamp(min=0)).numpy()

    def retrieval(self, images: Tensor, captions: Sequence[str], among: int = 100, seed: int = 0) -> float:
        """Share of the pictures whose own caption scores highest among `among` captions (chance: 1 / among).

        The other `among` - 1 are drawn without replacement from the captions that differ from the picture's
        own; the draw depends on `seed` and the picture's index alone. A tie counts as a miss.
        """
        _check_pairs(images, captions)
        distinct = sorted(set(captions))
        if not 2 <= among <= len(distinct):
            raise ValueError(
                f"cannot choose among {among} captions of {len(distinct)} distinct ones; "
                f"pass 2 <= among <= {len(distinct)}"
            )
        index = {caption: place for place, caption in enumerate(distinct)}
        similarity = images @ self.text_features(distinct).T
        hits = 0
        for row, caption in enumerate(captions):
            own = index[caption]
            others = np.random.default_rng([seed, row]).choice(len(distinct) - 1, among - 1, replace=False)
            others += others >= own  # positions in `distinct` without the picture's own
            hits += bool(similarity[row, own] > similarity[row, others].max())
        return hits / len(captions)

    @torch.inference_mode()
    def image_features(self, paths: Sequence[str | PathLike], batch: int = 64, progress: bool = True) -> Tensor:
        """Unit features of pictures, float32 [n, d] on the CPU; ValueError names an unreadable picture."""
        if not paths:
            raise ValueError("no pictures to score; generate the pictures first")
        parts = []
        for start in tqdm(range(0, len(paths), batch), desc="CLIP images", disable=not progress):
            pictures = [self.preprocess(read(path)) for path in paths[start : start + batch]]
            parts.append(self.model.encode_image(torch.stack(pictures).to(self.device)))
        return normalize(torch.cat(parts).float(), dim=1).cpu()

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
    centroid is its own class's. ValueError where the file is absent or lacks a class.
    """
    _check_pairs(images, names)
    try:
        centroids = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"no class centroids in {file} ({error}): is this model conditioned on classes?") from error
    known = sorted(centroids)
    for name in names:
        if name not in centroids:
            raise ValueError(f"{file}: {unknown('class', name, known)}")
    similarity = images @ torch.stack([centroids[name].float() for name in known]).T
    own = torch.tensor([known.index(name) for name in names])
    return similarity[torch.arange(len(own)), own].numpy(), (similarity.argmax(dim=1) == own).numpy()


def _check(folder: Path) -> None:
    """open_clip would fall back to a pickle, or to random weights, without a word."""
    if not folder.is_dir():
        raise ValueError(f"no CLIP model at {folder}; pass the folder of an open_clip model")
    if not (folder / CONFIG).is_file():
        raise ValueError(f"CLIP model {folder} lacks {CONFIG}")
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise ValueError(f"CLIP model {folder} holds pickled weights: {pickles[0]}; remove them")
    weights = sorted(path.name for path in folder.glob("*.safetensors"))
    if len(weights) != 1:
        raise ValueError(f"CLIP model {folder} must hold one safetensors file, not {len(weights)}")


def _check_pairs(images: Tensor, texts: Sequence[str]) -> None:
    if len(images) != len(texts):
        raise ValueError(f"{len(images)} pictures but {len(texts)} captions; pass one caption a picture")
