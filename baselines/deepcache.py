"""DeepCache (arXiv 2312.00858) as a schedule: between full calls only the outermost layers run."""

from __future__ import annotations

import numpy as np

from baselines.context import Plan, PlanContext
from dipgo import Schedule, family_of
from dipgo.errors import DipgoError

LAYERS_A_BRANCH_LEVEL = 3  # branch b = 3 * block + layer, counted from the outside


def plan(context: PlanContext) -> Plan:
    """Parameters: `interval` N (a full call every N) and `branch` (how deep cached calls reach; 0 is shallowest).

    The block at the branch's level is cut open into its layers on the way down and up; blocks further in are
    reused whole, blocks further out always run.
    """
    interval, branch = context.param("interval"), context.param("branch")
    level, layer = divmod(branch, LAYERS_A_BRANCH_LEVEL)
    family, blocks = family_of(context.denoiser), context.graph.sites
    depth = sum(site.startswith("down_blocks.") for site in blocks)
    if interval < 1 or not 0 <= level < depth or depth != sum(s.startswith("up_blocks.") for s in blocks):
        raise DipgoError(f"DeepCache interval {interval}, branch {branch} do not fit a U-Net of {depth} levels")
    down, up = f"down_blocks.{level}", f"up_blocks.{depth - 1 - level}"
    inner = set(blocks[level + 1 : len(blocks) - level - 1])
    sites, computed = [], []
    for block in blocks:
        if block in (down, up):
            layers = family.layers(context.denoiser, block)
            sites += layers
            computed += [_runs(name, layers, layer, is_down=block == down) for name in layers]
        else:
            sites.append(block)
            computed.append(block not in inner)
    context = context.at_sites(sites)
    reuse = np.zeros((context.sampler.calls, len(sites)), dtype=bool)
    cached_calls = np.arange(len(reuse)) % interval != 0
    reuse[np.ix_(cached_calls, ~np.array(computed))] = True
    return Plan(context.sampler, Schedule(tuple(sites), reuse), context.costs)


def _runs(name: str, layers: tuple[str, ...], branch_layer: int, *, is_down: bool) -> bool:
    """Whether a layer of the cut block runs in a cached call: the first `branch_layer` ones on the way down,
    the last `branch_layer` + 1 and the upsampler on the way up."""
    *_, kind, index = name.split(".")
    if kind.endswith("samplers"):
        return not is_down
    count = sum(".resnets." in other for other in layers)
    return int(index) < branch_layer if is_down else count - 1 - int(index) <= branch_layer
