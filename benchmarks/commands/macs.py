"""Counts the MACs of the paper's tables without weights, and keeps the counts in `tables/macs.json`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from baselines import Plan
from benchmarks import ROOT
from benchmarks.models.macs import macs_cells
from benchmarks.models.shapes import _denoiser, plan
from benchmarks.specs.files import construct, read_toml, write_text
from benchmarks.supply.paper_configs import PAPER_MODELS, paper_model
from dipgo import TOLERANCE, Sampler, Schedule, family_of

HERE = Path(__file__).parent
CELLS = HERE / "macs.toml"
COUNTS = ROOT / "tables" / "macs.json"
PACKAGES = ("torch", "diffusers", "numpy")
PRUNED = "pruned"
CODE = ("dipgo", "baselines", "benchmarks/models", "benchmarks/commands/macs.py")
CODE += ("benchmarks/supply/paper_configs.py", "benchmarks/supply/paper_configs.toml")
"""What may decide a count: whole folders, so that no module that matters can be forgotten."""


@dataclass(frozen=True)
class MacsCell:
    """A cell of MACs that the paper prints, and how its row is run.

    `table`, `group`, `method` and `dataset` say which cell it is.
    """

    table: str
    method: str
    dataset: str
    model: str
    scheduler: str
    steps: int
    group: str = ""
    plan: str = "dense"
    """The method of `baselines`, or "pruned" for a schedule that is not published."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """The parameters of the method."""
    ratio: float | None = None
    """The pruned ratio that the paper prints; None where it prints none."""


def load_cells(path: Path = CELLS) -> list[MacsCell]:
    """Return the cells in the order of the file, where the fields of a table hold for all its cells.

    Raises `DipgoError` for a broken file.
    """
    cells = []
    for table in read_toml(path).get("table", []):
        shared = {key: value for key, value in table.items() if key != "cell"}
        cells += [construct(MacsCell, {**shared, **cell}, f"{path}: cell") for cell in table.get("cell", [])]
    return cells


def digest(cells: list[MacsCell]) -> str:
    """Return 16 hex digits of all that decides the counts: the cells, the code that counts them, and its packages."""
    places = [ROOT / name for name in CODE]
    files = [file for place in places for file in ([place] if place.is_file() else place.rglob("*.py"))]
    code = {file.relative_to(ROOT).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    packages = {name: version(name) for name in PACKAGES}
    text = json.dumps([[asdict(cell) for cell in cells], code, packages], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def count_tables(cells: list[MacsCell], path: Path = COUNTS) -> dict[str, Any]:
    """Return the counts of all cells. They are read from `path` where that has the same digest, else counted and
    written there.

    The result is {"digest", "tolerance" (of Algorithm 1), "models": {name: MACs of one call at batch 1}, "cells"}. Each
    of "cells" holds the fields of the cell, "dense_paper" and "dense_full", and where its plan is known also
    "macs_paper", "macs_full", "calls" and "computed_calls".
    """
    wanted = digest(cells)
    try:
        counts = json.loads(path.read_text(encoding="utf-8"))
        if counts["digest"] == wanted:
            return counts
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none yet, or not whole: count again
    counts = {"digest": wanted, "tolerance": TOLERANCE, "models": count_models(), "cells": count_cells(cells)}
    write_text(path, json.dumps(counts, indent=1) + "\n")
    return counts


DENSE = ("dense_paper", "dense_full")
COUNTED = ("macs_paper", "macs_full", *DENSE, "calls", "computed_calls")


def count(name: str, plan: Plan) -> dict[str, Any]:
    """Return the MACs of one picture in both conventions, under a plan and with everything computed.

    "computed_calls" is the number of calls in which a block runs. "step_skip_share" is the share of the saved MACs that
    lies in the other calls, or None where nothing is saved.
    """
    dense = replace(plan, schedule=Schedule.dense(plan.schedule.sites, plan.schedule.calls))
    cells, whole = (macs_cells(each, paper_model(name).branches) for each in (plan, dense))
    return {
        "macs_paper": cells["macs_paper"]["value"],
        "macs_full": cells["macs_full"]["value"],
        "dense_paper": whole["macs_paper"]["value"],
        "dense_full": whole["macs_full"]["value"],
        "computed_calls": cells["computed_calls"]["value"],
        "step_skip_share": cells.get("step_skip_share", {}).get("value"),
    }


def count_run(name: str, scheduler: str, steps: int, schedule: Path | None = None) -> dict[str, Any]:
    """Return `count` of the schedule in a file, or of the dense run where there is none.

    Raises `DipgoError` for an unknown name, and for a schedule of other sites or of another number of calls.
    """
    sampler = Sampler(scheduler, {}, steps)
    if schedule is None:
        return count(name, plan(name, sampler))
    read, denoiser = Schedule.load(schedule), _denoiser(name)
    return count(name, Plan(sampler, read, family_of(denoiser).costs(denoiser, read.sites)))


def count_cells(cells: Sequence[MacsCell]) -> list[dict[str, Any]]:
    """Return the fields and counts of the cells, as `count_tables` describes them."""
    counted = []
    for cell in cells:
        pruned, sampler = cell.plan == PRUNED, Sampler(cell.scheduler, {}, cell.steps)
        planned = plan(cell.model, sampler, "dense" if pruned else cell.plan, cell.params)
        counts = {**count(cell.model, planned), "calls": planned.sampler.calls}
        kept = DENSE if pruned else COUNTED
        counted.append({**asdict(cell), **{key: counts[key] for key in kept}})
    return counted


def count_models() -> dict[str, dict[str, float]]:
    """Return the MACs of one call of every model at batch 1: "paper" as the paper charges it, and "full", with all
    operations, for one guidance branch."""
    costs = {name: plan(name, Sampler("ddim", {}, 1)).costs for name in PAPER_MODELS}
    return {
        name: {"paper": each.paper.dense * each.paper_branches, "full": each.full.dense} for name, each in costs.items()
    }
