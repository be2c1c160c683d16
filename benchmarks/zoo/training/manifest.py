"""Writes ``benchmarks/zoo/manifest.json``: sha256 and bytes of every shipped file, and what was measured.

``python -m benchmarks.zoo.training.manifest --work DIR``; run it after every export.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from benchmarks.zoo.training.common import ZOO, arguments

ENTRIES = {"emoji-sd": ("vae", "emoji-sd"), "emoji-clip": ("emoji-clip",), "reference": ("reference",)}


def _files(paths: list[Path]) -> dict[str, dict[str, object]]:
    return {
        path.relative_to(ZOO).as_posix(): {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "bytes": path.stat().st_size,
        }
        for path in sorted(paths)
    }


def main() -> None:
    args = arguments(__doc__)
    manifest: dict[str, object] = {"prompts": {"files": _files([ZOO / "prompts.csv"]), "measured": {}}}
    for entry, cards in ENTRIES.items():
        files = [path for path in (ZOO / entry).rglob("*") if path.is_file()]
        written = {card: args.work / f"{card}.json" for card in cards}
        measured = {card: json.loads(path.read_text()) for card, path in written.items() if path.is_file()}
        if files:
            manifest[entry] = {"files": _files(files), "measured": measured}
    temporary = ZOO / "manifest.json.tmp"
    temporary.write_text(json.dumps(manifest, indent=2) + "\n")
    os.replace(temporary, ZOO / "manifest.json")


if __name__ == "__main__":
    main()
