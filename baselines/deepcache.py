"""DeepCache (arXiv 2312.00858) as a schedule: between full calls only the outermost layers run."""

from __future__ import annotations

import numpy as np

from baselines.plan import Plan, PlanContext
from dipgo import Family, Schedule, family_of
from dipgo.errors import DipgoError

LAYERS_A_BRANCH_LEVEL = 3  # branch b = 3 * block + layer, counted from the outside


def plan(context: PlanContext) -> Plan:
    """Parameters: `interval` N (a full call every N), and how deep cached calls reach.

    In a U-Net that is `branch` (0 is shallowest): the block at the branch's level is cut open into its layers
    on the way down and up; blocks further in are reused whole, blocks further out always run. A plain
    transformer has no skip connections: there the last `blocks` blocks run, on the cached output of the one
    before them (the reading by which the paper's Table 3 counts MACs).
    """
    interval = context.param("interval")
    if interval < 1:
        raise DipgoError(f"DeepCache interval is {interval}; it must be at least 1")
    family = family_of(context.denoiser)
    context, reused = (_last_blocks if family.layers is None else _outer_layers)(context, family)
    reuse = np.zeros((context.sampler.calls, len(context.graph.sites)), dtype=bool)
    reuse[np.arange(len(reuse)) % interval != 0] = reused
    return Plan(context.sampler, Schedule(context.graph.sites, reuse), context.costs)


def _last_blocks(context: PlanContext, family: Family) -> tuple[PlanContext, np.ndarray]:
    count, depth = context.param("blocks"), len(context.graph.sites)
    if not 0 < count < depth:
        raise DipgoError(f"DeepCache blocks is {count}; it must lie between 1 and {depth - 1}")
    return context, np.arange(depth) < depth - count


def _outer_layers(context: PlanContext, family: Family) -> tuple[PlanContext, np.ndarray]:
    branch, blocks = context.param("branch"), context.graph.sites
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
    """Whether a layer of the cut block runs in a cached call: the first `branch_layer` ones on the way down,
    the last `branch_layer` + 1 and the upsampler on the way up."""
    *_, kind, index = name.split(".")
    if kind.endswith("samplers"):
        return not is_down
    count = sum(".resnets." in other for other in layers)
    return int(index) < branch_layer if is_down else count - 1 - int(index) <= branch_layer
