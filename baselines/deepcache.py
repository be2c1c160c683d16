"""DeepCache (arXiv 2312.00858) as a schedule: between full calls only the outermost layers run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from baselines.plan import Plan, PlanContext
from dipgo import Family, Schedule, family_of
from dipgo.errors import DipgoError

LAYERS_A_BRANCH_LEVEL = 3  # branch b = 3 * block + layer, counted from the outside
EXAMPLES = ({"interval": 2, "branch": 0}, {"interval": 2, "blocks": 1})


@dataclass(frozen=True)
class Params:
    """The parameters of `plan`: `branch` for a U-Net, `blocks` for a plain transformer."""

    interval: int
    """Every so many calls one is computed in full."""
    branch: int | None = None
    """How deep the other calls reach into a U-Net; 0 is shallowest."""
    blocks: int | None = None
    """How many of a transformer's last blocks the other calls run."""


def plan(context: PlanContext, params: Params) -> Plan:
    """Run everything in every `interval`-th call, and the outermost layers in the others.

    In a U-Net the block at the branch's level is cut open into its layers on the way down and up; blocks further in are
    reused whole, blocks further out always run. A plain transformer has no skip connections: there the last `blocks`
    blocks run on the cached output of the one before them (the reading by which the paper's Table 3 counts MACs).
    """
    if params.interval < 1:
        raise DipgoError(f"DeepCache interval is {params.interval}; it must be at least 1")
    family = family_of(context.denoiser)
    asked, other = ("blocks", "branch") if family.layers is None else ("branch", "blocks")
    if getattr(params, asked) is None or getattr(params, other) is not None:
        kind = "transformer" if family.layers is None else "U-Net"
        raise DipgoError(f"DeepCache on a {kind} needs the parameter {asked!r}, and takes no {other!r}")
    if family.layers is None:
        reused = _last_blocks(context, params.blocks)
    else:
        context, reused = _outer_layers(context, family, params.branch)
    reuse = np.zeros((context.sampler.calls, len(context.graph.sites)), dtype=bool)
    reuse[np.arange(len(reuse)) % params.interval != 0] = reused
    return Plan(context.sampler, Schedule(context.graph.sites, reuse), context.costs)


def _last_blocks(context: PlanContext, count: int) -> np.ndarray:
    """Return which blocks are reused, bool [sites], where the last `count` run."""
    depth = len(context.graph.sites)
    if not 0 < count < depth:
        raise DipgoError(f"DeepCache blocks is {count}; it must lie between 1 and {depth - 1}")
    return np.arange(depth) < depth - count


def _outer_layers(context: PlanContext, family: Family, branch: int) -> tuple[PlanContext, np.ndarray]:
    """Return the context over the branch's layers and the other blocks, and which of these are reused, bool [sites]."""
    blocks = context.graph.sites
    level, layer = divmod(branch, LAYERS_A_BRANCH_LEVEL)
    depth = sum(site.startswith("down_blocks.") for site in blocks)
    if not 0 <= level < depth or depth != sum(s.startswith("up_blocks.") for s in blocks):
        raise DipgoError(f"DeepCache branch {branch} does not fit a U-Net of {depth} levels")
    down, up = f"down_blocks.{level}", f"up_blocks.{depth - 1 - level}"
    inner = set(blocks[level + 1 : len(blocks) - level - 1])
    sites, reused = [], []
    for block in blocks:
        if block in (down, up):
            layers = family.layers(context.denoiser, block)
            sites += layers
            reused += [not _runs(name, layers, layer, is_down=block == down) for name in layers]
        else:
            sites.append(block)
            reused.append(block in inner)
    return context.at_sites(sites), np.array(reused)


def _runs(name: str, layers: tuple[str, ...], branch_layer: int, *, is_down: bool) -> bool:
    """Tell whether a layer of the cut block runs in a cached call: on the way down the first `branch_layer` layers do,
    on the way up the last `branch_layer` + 1 and the upsampler."""
    *_, kind, index = name.split(".")
    if kind.endswith("samplers"):
        return not is_down
    count = sum(".resnets." in other for other in layers)
    return int(index) < branch_layer if is_down else count - 1 - int(index) <= branch_layer
