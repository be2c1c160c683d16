"""The embedded models and prompts: where they lie, and that they are what the manifest says. No torch."""

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
from dipgo.errors import DipgoError, unknown

ZOO = ROOT / "benchmarks" / "zoo"
WAY_OUT = "restore it with: git checkout -- benchmarks/zoo"
CLASSES = "classes"  # the prompt set of class names, from the class-conditional model's folder


@dataclass(frozen=True)
class Prompt:
    """One caption; ``index`` is its row in its set and with a seed decides the noise of its image."""

    index: int
    caption: str
    name: str
    style: str


@functools.cache
def manifest(zoo: Path = ZOO) -> dict[str, dict[str, Any]]:
    """Entries by name, each with ``files`` (path -> sha256 and bytes) and ``measured`` (its training's numbers)."""
    path = zoo / "manifest.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise DipgoError(f"{path} cannot be read ({type(error).__name__}); {WAY_OUT}") from error


def _entry(name: str, zoo: Path) -> dict[str, Any]:
    entries = manifest(zoo)
    if name not in entries:
        raise unknown("zoo entry", name, entries)
    return entries[name]


def files_of(folder: Path) -> list[Path]:
    """Every file under a folder, those in linked folders included: models share parts by relative links."""
    return sorted(Path(top) / name for top, _, names in os.walk(folder, followlinks=True) for name in names)


@functools.cache
def verify(name: str, zoo: Path = ZOO) -> None:
    """Compares every file of the entry with the manifest, once a process; raises DipgoError at the first that is
    missing or differs."""
    for file, known in _entry(name, zoo)["files"].items():
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
        if found != known["sha256"]:
            raise DipgoError(f"{path} differs from the manifest (sha256 {found[:12]}); {WAY_OUT}")


def model_path(name: str, zoo: Path = ZOO) -> Path:
    """Folder of a verified entry, such as ``emoji-sd`` or ``reference``."""
    verify(name, zoo)
    return zoo / name


def revision(name: str, zoo: Path = ZOO) -> str:
    """12 hex digits that change with any file of the entry."""
    files = _entry(name, zoo)["files"]
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:12]


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def prompts(set: str, zoo: Path = ZOO) -> list[Prompt]:
    """Captions of ``train``, ``seen`` (also trained on) or ``held-out`` (never trained on), in file order; the class
    names of ``classes``, as frequent as among the pictures, for a class-conditional model."""
    if set == CLASSES:
        folder = model_path("emoji-dit", zoo)
        return [Prompt(i, row["class"], row["class"], "") for i, row in enumerate(_rows(folder / "classes.csv"))]
    verify("prompts", zoo)
    rows = _rows(zoo / "prompts.csv")
    found = [row for row in rows if row["set"] == set]
    if not found:
        raise unknown("prompt set", set, {CLASSES, *(row["set"] for row in rows)})
    return [Prompt(i, row["caption"], row["name"], row["style"]) for i, row in enumerate(found)]
