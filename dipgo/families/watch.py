"""What a denoiser's blocks are, found by watching one call; no model needs to be known by name.

inputs = capture(pipe, "a fox", num_inference_steps=30)  # the pipeline's own arguments
sites = find_sites(pipe.transformer, inputs)
costs = costs_of(pipe.transformer, sites, inputs)  # and costs.graph
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from dipgo.costs import CostModel, PaperMacs
from dipgo.errors import DipgoError, unknown
from dipgo.execute.hooks import hooked
from dipgo.families import family_of
from dipgo.families.family import UNITS, Unit, counted, denoiser_of
from dipgo.graph import WHOLE_CALL, BlockGraph, Site, call_once, follow_sites, named_inputs

SHARE = 0.001  # of the denoiser's weights; a block of the published models holds at least 0.0025
NO_SITES = BlockGraph((), (), frozenset())


class _Seen(BaseException):
    """Ends a pipeline's call once the denoiser's inputs have been seen; no pipeline catches it."""


def capture(pipeline: Any, *args: Any, component: str | None = None, **kwargs: Any) -> dict[str, Any]:
    """Return the inputs of the denoiser's first call in `pipeline(*args, **kwargs)`, by the names in its forward.

    The pipeline runs up to that call and no further. Afterwards it, its scheduler and all random generators are as they
    were before.

    component: the denoiser's name in the pipeline, such as "transformer_2" or "controlnet"; a unet or transformer is
        found without it.

    Raises `DipgoError` where the pipeline has no such denoiser, never calls it, or calls it while it is gated.
    """
    denoiser = denoiser_of(pipeline, component)
    twin = copy.copy(pipeline)  # what a call leaves on the pipeline, it leaves on the twin
    vars(twin).update({n: copy.deepcopy(v) for n, v in vars(pipeline).items() if hasattr(v, "set_timesteps")})
    if hasattr(twin, "set_progress_bar_config"):
        twin.set_progress_bar_config(disable=True)
    seen: dict[str, Any] = {}

    def stop(module: nn.Module, forward: Any, /, *args: Any, **kwargs: Any) -> Any:
        seen.update(named_inputs(module, args, kwargs))
        raise _Seen

    generators = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Generator)]
    states = [generator.get_state() for generator in generators]
    processors = dict(getattr(denoiser, "attn_processors", {}))
    devices = range(torch.cuda.device_count())
    try:
        with torch.random.fork_rng(devices), torch.no_grad(), hooked(denoiser, NO_SITES, (), stop), suppress(_Seen):
            twin(*args, **kwargs)
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        if processors and processors != denoiser.attn_processors:  # some pipelines replace them for a call's length
            denoiser.set_attn_processor(processors)
        if hasattr(pipeline, "maybe_free_model_hooks"):
            pipeline.maybe_free_model_hooks()
    if not seen:
        raise DipgoError(
            f"{type(pipeline).__name__} never called its {component or type(denoiser).__name__} in this run; "
            "give arguments with which it does"
        )
    return seen


def find_sites(denoiser: nn.Module, inputs: Mapping[str, Any], unit: Unit = "output") -> tuple[str, ...]:
    """Return a denoiser's sites in order of execution, found by watching the call `denoiser(**inputs)`.

    The sites are the outermost modules that run exactly once in the call, hold a share of the weights, and stand in a
    `ModuleList` or are of a class named "...Block...". Those whose output nobody reads are left out.

    unit: "output" takes their outputs; "delta" what they add to their streams, as far as they have such; "call" the
        whole call as the only site.

    Raises `DipgoError` where there is no such module, and for inputs that the denoiser cannot take.
    """
    if unit not in UNITS:
        raise unknown("unit", unit, UNITS)
    if unit == "call":
        return (WHOLE_CALL,)
    least = SHARE * _weights(denoiser)
    rows = {part for row in denoiser.modules() if isinstance(row, nn.ModuleList) for part in row}
    runs: Counter[str] = Counter()  # keeps the order in which modules began to run
    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: runs.update([name]))
        for name, module in denoiser.named_modules()
        if name and (module in rows or "Block" in type(module).__name__) and _weights(module) >= least > 0
    ]
    try:
        call_once(denoiser, inputs)
    finally:
        for handle in handles:
            handle.remove()
    once = [name for name, count in runs.items() if count == 1]
    outermost = [name for name in once if not any(name.startswith(f"{other}.") for other in once)]
    if not outermost:
        raise DipgoError(
            f"no blocks found in {type(denoiser).__name__}: no module in a ModuleList or of a class named *Block* runs "
            f"once in a call and holds {SHARE:.1%} of the weights; name the sites by their dotted paths"
        )
    unread = follow_sites(denoiser, outermost, inputs).unread
    return tuple(
        str(Site(name, delta=unit == "delta")) for name, dead in zip(outermost, unread, strict=True) if not dead
    )


def costs_of(denoiser: nn.Module, sites: Sequence[str], inputs: Mapping[str, Any]) -> CostModel:
    """Return the graph and the MACs of any denoiser over some sites, from the call `denoiser(**inputs)`.

    They are the MACs of all rows in that call. Where no family says how the paper counts a denoiser, it is counted as
    Stable Diffusion's: convolutions and linear layers, attention products left out.

    Raises `DipgoError` as `trace_graph` and `count_costs` do.
    """
    try:
        paper = family_of(denoiser).macs
    except DipgoError:
        paper = PaperMacs()
    return counted(denoiser, sites, inputs, paper)


def _weights(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())
