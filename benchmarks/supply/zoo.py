"""The embedded models and prompts: where they lie, and a check that they are what the manifest says. No torch."""

from __future__ import annotations

import csv
import functools
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.specs.prompts import FRESH
from dipgo.errors import DipgoError, unknown
from dipgo.files import read_json

ZOO = ROOT / "benchmarks" / "zoo"
WAY_OUT = "restore it with: git checkout -- benchmarks/zoo"
CLASSES = "classes"
"""The prompt set of class names, which lie in the folder of the class-conditional model, in `classes.csv`."""


@dataclass(frozen=True)
class Prompt:
    """One caption."""

    index: int
    """Its row in its set. With a seed it decides the noise of the picture."""
    caption: str
    name: str
    style: str


@functools.cache
def manifest(zoo: Path = ZOO) -> dict[str, dict[str, Any]]:
    """Return the entries by name, each with `files` (path -> sha256 and bytes) and `measured` (the numbers of its
    training)."""
    try:
        return read_json(zoo / "manifest.json", "a manifest")
    except DipgoError as error:
        raise DipgoError(f"{error}; {WAY_OUT}") from error


def _entry(name: str, zoo: Path) -> dict[str, Any]:
    entries = manifest(zoo)
    if name not in entries:
        raise unknown("zoo entry", name, entries)
    return entries[name]


def files_of(folder: Path) -> list[Path]:
    """Return every file under a folder, those in linked folders included: models share parts by relative links."""
    return sorted(Path(top) / name for top, _, names in os.walk(folder, followlinks=True) for name in names)


@functools.cache
def verify(name: str, zoo: Path = ZOO) -> None:
    """Compare an entry with the manifest, once a process.

    Raises a `DipgoError` for the first file that is missing or differs, and for one that the manifest does not know:
    a loader might look at it, as it does at the index of a checkpoint in several files.
    """
    known = _entry(name, zoo)["files"]
    for file, entry in known.items():
        path = zoo / file
        # Where git makes no links, a linked folder is a small text file with the name of its target.
        link = next((parent for parent in path.parents if parent.is_file()), None)
        if link is not None:
            raise DipgoError(
                f"{link} was checked out as a text file but is a link; "
                "run: git config core.symlinks true && git checkout -- benchmarks/zoo"
            )
        if not path.is_file():
            raise DipgoError(f"{path} is missing; {WAY_OUT}")
        with path.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        if found != entry["sha256"]:
            raise DipgoError(f"{path} differs from the manifest (sha256 {found[:12]}); {WAY_OUT}")
    for path in files_of(zoo / name):
        if path.relative_to(zoo).as_posix() not in known:
            raise DipgoError(f"{path} is not in the manifest, and a loader may look at it; remove it")


def model_path(name: str, zoo: Path = ZOO) -> Path:
    """Return the folder of a verified entry, such as `emoji-sd` or `reference`."""
    verify(name, zoo)
    return zoo / name


def revision(name: str, zoo: Path = ZOO) -> str:
    """Return 12 hex digits that change with any file of the entry."""
    files = _entry(name, zoo)["files"]
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:12]


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def models(zoo: Path = ZOO) -> list[str]:
    """Return the names of the entries that are pipelines."""
    return [name for name, entry in manifest(zoo).items() if f"{name}/model_index.json" in entry["files"]]


def prompt_sets(zoo: Path = ZOO) -> list[str]:
    """Return the names of the prompt sets."""
    verify("prompts", zoo)
    return [*dict.fromkeys(row["set"] for row in _rows(zoo / "prompts.csv")), FRESH, CLASSES]


def prompts(set: str, model: str = "", zoo: Path = ZOO) -> list[Prompt]:
    """Return the captions of a prompt set, in the order of the file.

    set: `train`, `seen` (also trained on), `held-out` (never trained on), `fresh` (never trained on, and no setting
        was ever tried on it), or `classes`: the names of the classes that a model draws, each as often as among the
        pictures that the model was trained on.
    model: the model that draws them. Only `classes` depends on it.

    Raises `DipgoError` for an unknown set, and for `classes` where the model draws captions.
    """
    if set == CLASSES:
        file = model_path(model, zoo) / "classes.csv"
        if not file.is_file():
            raise DipgoError(f"{model} draws captions, no classes: it has no {file.name}; take another prompt set")
        return [Prompt(i, row["class"], row["class"], "") for i, row in enumerate(_rows(file))]
    entry = FRESH if set == FRESH else "prompts"
    verify(entry, zoo)
    found = [row for row in _rows(zoo / f"{entry}.csv") if row["set"] == set]
    if not found:
        raise unknown("prompt set", set, prompt_sets(zoo))
    return [Prompt(i, row["caption"], row["name"], row["style"]) for i, row in enumerate(found)]
