"""The files in a folder of drawn pictures: who draws them and who shows them agree on these names. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dipgo.files import read_json

SHEETS = "sheets.json"
"""{record file: {"sheet": PNG, "prompts", "captions", "width", "height", "psnr"}}, where the PNG holds the pictures of
the captions side by side, or {record file: {"absent": the reason}}."""
SIMILARITY = "similarity.json"
"""{record file: {"model", "scheduler", "steps", "cosine": calls x calls}}."""


def listed(path: Path) -> dict[str, Any]:
    """Return the content of one of the two files; it is empty before anything is drawn."""
    return read_json(path) if path.is_file() else {}
