"""Writes ``benchmarks/zoo/manifest.json``: sha256 and bytes of every shipped file, and what was measured."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from benchmarks.supply.zoo import files_of
from benchmarks.zoo.training.common import CHECKPOINTS, ZOO, write_json

# Entries with the trainings whose cards they carry; each entry is a folder.
ENTRIES = {
    "emoji-sd": ("decoder", "emoji-sd"),
    "emoji-clip": ("emoji-clip",),
    "reference": (),
    "emoji-bk-base": ("emoji-bk-base",),
    "emoji-bk-small": ("emoji-bk-small",),
    "emoji-sd2": ("emoji-sd2",),
    "emoji-xl-lcm": ("emoji-xl", "emoji-xl-lcm"),
    "emoji-dit": ("emoji-dit",),
    "emoji-pixart": ("emoji-pixart",),
    "emoji-mmdit": ("emoji-mmdit",),
}


def _files(paths: list[Path]) -> dict[str, dict[str, object]]:
    return {
        path.relative_to(ZOO).as_posix(): {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "bytes": path.stat().st_size,
        }
        for path in sorted(paths)
    }


def write_manifest() -> None:
    """Keeps what was measured before of every entry and adds its trainings' cards under ``trained_on``."""
    before = json.loads((ZOO / "manifest.json").read_text())
    captions = ("prompts", "fresh")
    manifest: dict[str, object] = {name: {"files": _files([ZOO / f"{name}.csv"]), "measured": {}} for name in captions}
    for entry, names in ENTRIES.items():
        files = files_of(ZOO / entry)
        cards = {name: CHECKPOINTS / name / "card.json" for name in names}
        measured = dict(before.get(entry, {}).get("measured", {}))
        trained = {name: json.loads(path.read_text()) for name, path in cards.items() if path.is_file()}
        if files:
            measured |= {"trained_on": trained} if trained else {}
            manifest[entry] = {"files": _files(files), "measured": measured}
    write_json(ZOO / "manifest.json", manifest)
