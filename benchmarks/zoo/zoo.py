"""The embedded models and prompts: where they lie, and that they are what the manifest says. No torch."""

from __future__ import annotations

import csv
import difflib
import functools
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ZOO = Path(__file__).resolve().parent
WAY_OUT = "restore it with: git checkout -- benchmarks/zoo"
CLASSES = "classes"  # the prompt set of class names, from the class-conditional model's folder


class ZooError(ValueError):
    """A zoo entry is unknown, missing or not what the manifest says; one line that names it and the way out."""


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
        raise ZooError(f"{path} cannot be read ({type(error).__name__}); {WAY_OUT}") from error


def _unknown(kind: str, name: str, known: list[str]) -> ZooError:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
    return ZooError(f"unknown {kind} {name!r}; {hint}")


def _entry(name: str, zoo: Path) -> dict[str, Any]:
    entries = manifest(zoo)
    if name not in entries:
        raise _unknown("zoo entry", name, sorted(entries))
    return entries[name]


def files_of(folder: Path) -> list[Path]:
    """Every file under a folder, those in linked folders included: models share parts by relative links."""
    return sorted(Path(top) / name for top, _, names in os.walk(folder, followlinks=True) for name in names)


@functools.cache
def verify(name: str, zoo: Path = ZOO) -> None:
    """Compares every file of the entry with the manifest, once a process; raises ZooError at the first that is
    missing or differs."""
    for file, known in _entry(name, zoo)["files"].items():
        path = zoo / file
        # Where git makes no links, a linked folder is a small text file with the name of its target.
        link = next((parent for parent in path.parents if parent.is_file()), None)
        if link is not None:
            raise ZooError(
                f"{link} was checked out as a text file but is a link; "
                "run: git config core.symlinks true && git checkout -- benchmarks/zoo"
            )
        if not path.is_file():
            raise ZooError(f"{path} is missing; {WAY_OUT}")
        with path.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        if found != known["sha256"]:
            raise ZooError(f"{path} differs from the manifest (sha256 {found[:12]}); {WAY_OUT}")


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
        known = sorted({CLASSES, *(row["set"] for row in rows)})
        raise _unknown("prompt set", set, known)
    return [Prompt(i, row["caption"], row["name"], row["style"]) for i, row in enumerate(found)]
