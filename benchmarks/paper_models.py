"""The paper's denoisers by their published configurations: built without weights, to be counted or filled."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel, UNet2DConditionModel
from torch import nn

from baselines import Plan, PlanContext, bk_sdm, method
from benchmarks.cells import macs_cells
from benchmarks.macs import PRUNED, MacsCell
from benchmarks.spec import BenchmarkError, unknown
from dipgo import Sampler, Schedule, family_of


@dataclass(frozen=True)
class PaperModel:
    """A denoiser's class and the configuration that its checkpoint was published with.

    `branches` is how many guidance branches a step of its pipeline runs. `bk_sdm` names the variant that the
    configuration is cut down to.
    """

    denoiser: type[nn.Module]
    config: dict[str, Any]
    branches: int = 2
    bk_sdm: str = ""


SD15 = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
SD21 = {
    **SD15,
    "sample_size": 96,
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
SDXL_LCM = {
    **SD21,
    "sample_size": 128,
    "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
    "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "time_cond_proj_dim": 256,
}
DIT_XL_2 = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 28,
    "sample_size": 32,
    "patch_size": 2,
    "num_embeds_ada_norm": 1000,
}
PIXART_ALPHA = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 28,
    "sample_size": 128,
    "patch_size": 2,
    "cross_attention_dim": 1152,
    "caption_channels": 4096,
    "interpolation_scale": 2,
}
PAPER_MODELS: dict[str, PaperModel] = {
    "sd15": PaperModel(UNet2DConditionModel, SD15),
    "bk-sdm-base": PaperModel(UNet2DConditionModel, SD15, bk_sdm="base"),
    "bk-sdm-small": PaperModel(UNet2DConditionModel, SD15, bk_sdm="small"),
    "bk-sdm-tiny": PaperModel(UNet2DConditionModel, SD15, bk_sdm="tiny"),
    "sd21": PaperModel(UNet2DConditionModel, SD21),
    "sdxl-lcm": PaperModel(UNet2DConditionModel, SDXL_LCM, branches=1),
    "dit-xl-2": PaperModel(DiTTransformer2DModel, DIT_XL_2),
    "pixart-alpha": PaperModel(PixArtTransformer2DModel, PIXART_ALPHA),
}
DENSE = ("dense_paper", "dense_full")
COUNTED = ("macs_paper", "macs_full", *DENSE, "calls", "computed_calls")


def paper_model(name: str) -> PaperModel:
    """A model of the paper; raises `BenchmarkError` for an unknown name."""
    if name not in PAPER_MODELS:
        raise unknown("model of the paper", name, PAPER_MODELS)
    return PAPER_MODELS[name]


def without_weights(model: PaperModel, **changes: Any) -> nn.Module:
    """The denoiser on the meta device: every shape, no memory. `changes` to its configuration, such as sample_size."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # BK-SDM copies weights, which have no values here
        denoiser = model.denoiser(**{**model.config, **changes})
        if model.bk_sdm:
            denoiser = bk_sdm.build(denoiser, model.bk_sdm)
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
