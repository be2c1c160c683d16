"""Writes ``benchmarks/zoo/manifest.json``: sha256 and bytes of every shipped file, and what was measured.

``python -m benchmarks.zoo.training.manifest --work DIR``; run it after every export. What DIR has no card of keeps
the numbers that it had.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from benchmarks.supply.zoo import files_of
from benchmarks.zoo.training.common import ZOO, arguments

# The cards of each entry; each folder is an entry.
ENTRIES = {
    "emoji-sd": ("vae", "emoji-sd"),
    "emoji-clip": ("emoji-clip",),
    "reference": ("reference",),
    "emoji-bk-base": ("emoji-bk-base",),
    "emoji-bk-small": ("emoji-bk-small",),
    "emoji-sd2": ("emoji-sd2",),
    "emoji-xl-lcm": ("emoji-xl-lcm",),
    "emoji-dit": ("emoji-dit",),
    "emoji-pixart": ("emoji-pixart",),
}


def _files(paths: list[Path]) -> dict[str, dict[str, object]]:
    return {
        path.relative_to(ZOO).as_posix(): {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "bytes": path.stat().st_size,
        }
        for path in sorted(paths)
    }


def main() -> None:
    args, target = arguments(__doc__), ZOO / "manifest.json"
    before = json.loads(target.read_text()) if target.exists() else {}
    manifest: dict[str, object] = {"prompts": {"files": _files([ZOO / "prompts.csv"]), "measured": {}}}
    for entry, cards in ENTRIES.items():
        files = files_of(ZOO / entry)
        written = {card: args.work / f"{card}.json" for card in cards}
        measured = {card: json.loads(path.read_text()) for card, path in written.items() if path.is_file()}
        if files:
            measured = before.get(entry, {}).get("measured", {}) | measured
            manifest[entry] = {"files": _files(files), "measured": measured}
    temporary = ZOO / "manifest.json.tmp"
    temporary.write_text(json.dumps(manifest, indent=2) + "\n")
    os.replace(temporary, target)


if __name__ == "__main__":
    main()
