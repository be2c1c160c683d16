"""What the suite must know of a model family. Its block graph is traced, not stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import nn

from dipgo.costs import CostModel, PaperMacs, count_costs
from dipgo.errors import unknown
from dipgo.graph import WHOLE_CALL, Site, trace_graph

Unit = Literal["output", "delta", "call"]
UNITS = ("output", "delta", "call")
Conditioning = Mapping[str, Any]

_COUNTED: WeakKeyDictionary[nn.Module, dict[tuple[str, ...], CostModel]] = WeakKeyDictionary()


def _any_config(config: Any) -> bool:
    return True


@dataclass(frozen=True)
class Family:
    """A kind of denoiser.

    `blocks` lists the paper's gated blocks and `residuals` the modules that add to a residual stream (sites of
    unit "delta"), both as dotted paths in order of execution. `probe` makes the inputs of one batch-1 forward
    at the denoiser's own resolution; `tiny` a random instance for tests. `condition(pipeline, captions,
    guidance)` gives the keyword arguments that a diffusers pipeline passes to its denoiser besides sample and
    timestep, the unconditional rows first if guidance > 1. `layers` lists the parts of a block, for methods
    that cut one open; `matches` looks at a config, to tell apart families that share a class; `macs` is the
    paper's way of counting.
    """

    name: str
    denoiser: type[nn.Module]
    blocks: Callable[[nn.Module], tuple[str, ...]]
    residuals: Callable[[nn.Module], tuple[str, ...]]
    probe: Callable[[nn.Module], dict[str, Any]]
    condition: Callable[[Any, Sequence[str], float], Conditioning]
    tiny: Callable[[], nn.Module]
    layers: Callable[[nn.Module, str], tuple[str, ...]] | None = None
    matches: Callable[[Any], bool] = _any_config
    macs: PaperMacs = PaperMacs()

    def sites(self, denoiser: nn.Module, unit: Unit = "output") -> tuple[str, ...]:
        """The family's sites in order of execution: its blocks' outputs, its residual branches' deltas, or the whole
        call as the only one."""
        if unit not in UNITS:
            raise unknown("unit", unit, UNITS)
        if unit == "call":
            return (WHOLE_CALL,)
        if unit == "output":
            return self.blocks(denoiser)
        return tuple(str(Site(module, delta=True)) for module in self.residuals(denoiser))

    def costs(self, denoiser: nn.Module, sites: Sequence[str]) -> CostModel:
        """Graph and MACs over some sites, by one traced and one counted forward, once for a denoiser and its sites."""
        counted = _COUNTED.setdefault(denoiser, {})
        if tuple(sites) not in counted:
            probe = self.probe(denoiser)
            graph = trace_graph(denoiser, sites, probe)
            counted[tuple(sites)] = count_costs(denoiser, graph, probe, self.macs)
        return counted[tuple(sites)]


def rows(positive: torch.Tensor, negative: torch.Tensor | None, guided: bool) -> torch.Tensor:
    """Conditioning as the sampling loop takes it: 2n rows, the unconditional ones first, or n rows unguided."""
    return torch.cat([negative, positive]) if guided else positive


def like(model: nn.Module) -> dict[str, Any]:
    """Device and dtype of a model's weights, as keyword arguments."""
    weight = next(model.parameters())
    return {"device": weight.device, "dtype": weight.dtype}
