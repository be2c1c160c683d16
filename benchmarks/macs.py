"""MACs of every table of the paper, without weights: the cells as data, and their counts kept in one JSON. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.record import write_text
from benchmarks.spec import construct, read_toml

HERE = Path(__file__).parent
ROOT = HERE.parent
CELLS = HERE / "macs.toml"
COUNTS = ROOT / "tables" / "macs.json"
PACKAGES = ("torch", "diffusers", "numpy")
PRUNED = "pruned"
CODE = ("dipgo/costs.py", "dipgo/graph.py", "dipgo/sampling.py", "dipgo/families", "baselines", "benchmarks/cells.py")
CODE += ("benchmarks/macs.py", "benchmarks/paper_configs.py", "benchmarks/paper_models.py")


@dataclass(frozen=True)
class MacsCell:
    """A MACs cell that the paper prints for (`table`, `group`, `method`, `dataset`), and how that row is run: a model
    of the paper, a sampler, and the method `plan` of `baselines` with its parameters. The plan "pruned" stands for a
    schedule that is not published, with the `ratio` that the paper prints, if any."""

    table: str
    method: str
    dataset: str
    model: str
    scheduler: str
    steps: int
    group: str = ""
    plan: str = "dense"
    params: Mapping[str, Any] = field(default_factory=dict)
    ratio: float | None = None


def load_cells(path: Path = CELLS) -> list[MacsCell]:
    """The cells in the file's order; a table's own fields hold for all its cells. Raises `BenchmarkError`."""
    cells = []
    for table in read_toml(path).get("table", []):
        shared = {key: value for key, value in table.items() if key != "cell"}
        cells += [construct(MacsCell, {**shared, **cell}, f"{path}: cell") for cell in table.get("cell", [])]
    return cells


def digest(cells: list[MacsCell]) -> str:
    """16 hex digits of all that decides the counts: the cells, the code that counts them, and its packages."""
    files = [file for name in CODE for file in ([ROOT / name] if name.endswith(".py") else (ROOT / name).glob("*.py"))]
    code = {file.relative_to(ROOT).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    packages = {name: version(name) for name in PACKAGES}
    text = json.dumps([[asdict(cell) for cell in cells], code, packages], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def count_tables(cells: list[MacsCell], path: Path = COUNTS) -> dict[str, Any]:
    """The cells with their counts, written to `path`; taken from there where they are of the same digest.

    {"digest", "tolerance" (of Algorithm 1), "models": {name: MACs of one call at batch 1}, "cells": [the cell's fields
    and "dense_paper", "dense_full", and where there is a plan "macs_paper", "macs_full", "calls", "computed_calls"]}.
    """
    wanted = digest(cells)
    try:
        counts = json.loads(path.read_text(encoding="utf-8"))
        if counts["digest"] == wanted:
            return counts
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none yet, or not whole: count again
    from benchmarks.paper_models import count_cells, count_models  # after the look into the file: torch
    from dipgo.select import TOLERANCE

    counts = {"digest": wanted, "tolerance": TOLERANCE, "models": count_models(), "cells": count_cells(cells)}
    write_text(path, json.dumps(counts, indent=1) + "\n")
    return counts
