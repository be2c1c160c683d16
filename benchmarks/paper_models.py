"""What the paper's models cost: their MACs, counted without weights."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

from baselines import Plan, PlanContext, method
from benchmarks.cells import macs_cells
from benchmarks.macs import PRUNED, MacsCell
from benchmarks.paper_configs import PAPER_MODELS, PaperModel, paper_model
from benchmarks.spec import BenchmarkError
from dipgo import Sampler, Schedule, family_of

DENSE = ("dense_paper", "dense_full")
COUNTED = ("macs_paper", "macs_full", *DENSE, "calls", "computed_calls")


def without_weights(model: PaperModel, **changes: Any) -> nn.Module:
    """The denoiser on the meta device: every shape, no memory. `changes` to its configuration, such as sample_size."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # BK-SDM copies weights, which have no values here
        denoiser = model.denoiser(**changes)
    return denoiser.eval().requires_grad_(False)


def plan(name: str, sampler: Sampler, method_name: str = "dense", params: Mapping[str, Any] | None = None) -> Plan:
    """What a method that needs no images makes of a model of the paper; counted without weights, once a model."""
    denoiser = _denoiser(name)
    family = family_of(denoiser)
    costs = family.costs(denoiser, family.sites(denoiser))
    context = PlanContext(denoiser, costs, sampler, params or {}, _no_images, _no_images, _no_images)
    return method(method_name)(context)


def count(name: str, plan: Plan) -> dict[str, Any]:
    """MACs of one image in both conventions, of the plan and of its model and sampler with everything computed; the
    calls in which a block runs; the share of the saved MACs that lies in calls where none does (None: none saved)."""
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
    """`count` of a schedule's file, or of the dense run. Raises `BenchmarkError` or `DipgoError` for an unknown name,
    or for a schedule of other sites or of another number of calls."""
    sampler = Sampler(scheduler, {}, steps)
    if schedule is None:
        return count(name, plan(name, sampler))
    read, denoiser = Schedule.load(schedule), _denoiser(name)
    return count(name, Plan(sampler, read, family_of(denoiser).costs(denoiser, read.sites)))


def count_cells(cells: Sequence[MacsCell]) -> list[dict[str, Any]]:
    """The cells' fields and counts, as `benchmarks.macs.count_tables` describes them."""
    counted = []
    for cell in cells:
        pruned, sampler = cell.plan == PRUNED, Sampler(cell.scheduler, {}, cell.steps)
        planned = plan(cell.model, sampler, "dense" if pruned else cell.plan, cell.params)
        counts = {**count(cell.model, planned), "calls": planned.sampler.calls}
        kept = DENSE if pruned else COUNTED
        counted.append({**asdict(cell), **{key: counts[key] for key in kept}})
    return counted


def count_models() -> dict[str, dict[str, float]]:
    """MACs of one call of every model at batch 1: `paper` as the paper charges it, `full` of one guidance branch."""
    costs = {name: plan(name, Sampler("ddim", {}, 1)).costs for name in PAPER_MODELS}
    return {
        name: {"paper": each.paper.dense * each.paper_branches, "full": each.full.dense} for name, each in costs.items()
    }


@cache
def _denoiser(name: str) -> nn.Module:
    diffusers.utils.logging.set_verbosity_error()  # it warns of a cast that changes nothing
    return without_weights(paper_model(name))


def _no_images(*args: Any) -> Any:
    raise BenchmarkError("this method needs images, and a model without weights gives none; measure it by a run")
