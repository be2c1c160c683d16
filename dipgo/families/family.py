"""What the suite must know of a model family. Its block graph is traced, not stored."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

import torch
from torch import nn

from dipgo.costs import CostModel, PaperMacs, count_costs
from dipgo.errors import DipgoError, unknown
from dipgo.graph import WHOLE_CALL, Site, trace_graph

Unit = Literal["output", "delta", "call", "layer"]
UNITS = ("output", "delta", "call")  # those that `find_sites` finds in any denoiser
Conditioning = Mapping[str, Any]
PLAIN = {type(None), bool, int, float, str, bytes}

_COUNTED: WeakKeyDictionary[nn.Module, dict[Any, CostModel]] = WeakKeyDictionary()


def _any_config(config: Any) -> bool:
    return True


@dataclass(frozen=True)
class Family:
    """A kind of denoiser."""

    name: str
    denoiser: type[nn.Module]
    """The denoiser's class."""
    blocks: Callable[[nn.Module], tuple[str, ...]]
    """Gives the paper's gated blocks as dotted paths in order of execution."""
    residuals: Callable[[nn.Module], tuple[str, ...]]
    """Gives the modules that add to a residual stream (sites of unit "delta"), likewise."""
    probe: Callable[[nn.Module], dict[str, Any]]
    """Makes the inputs of one call at batch 1, at the denoiser's resolution and its checkpoint's text length."""
    condition: Callable[[Any, Sequence[str], float], Conditioning]
    """`condition(pipeline, captions, guidance)` gives the keyword arguments that a diffusers pipeline passes to its
    denoiser besides sample and timestep, the unconditional rows first if guidance > 1."""
    tiny: Callable[[], nn.Module]
    """Makes a random instance for tests."""
    layers: Callable[[nn.Module, str], tuple[str, ...]] | None = None
    """Gives the parts of a block, for methods that cut one open."""
    branches: Callable[[nn.Module], tuple[str, ...]] | None = None
    """Gives the sites of unit "layer": the attention and feed-forward layers, whose outputs a block adds to its stream.
    None where the modules of `residuals` are such layers themselves."""
    matches: Callable[[Any], bool] = _any_config
    """Looks at a config, to tell apart families that share a class."""
    macs: PaperMacs = PaperMacs()
    """The paper's way of counting."""

    def sites(self, denoiser: nn.Module, unit: Unit = "output") -> tuple[str, ...]:
        """Return the family's sites in order of execution: its blocks' outputs, its residual branches' deltas, the
        layers within its blocks, or the whole call as the only one."""
        if unit not in get_args(Unit):
            raise unknown("unit", unit, get_args(Unit))
        if unit == "call":
            return (WHOLE_CALL,)
        if unit == "output":
            return self.blocks(denoiser)
        if unit == "layer" and self.branches is not None:
            return self.branches(denoiser)
        return tuple(str(Site(module, delta=True)) for module in self.residuals(denoiser))

    def probe_of(self, pipeline: Any) -> dict[str, Any]:
        """Return the inputs of one call at batch 1 with the conditioning that this pipeline passes: as many text tokens
        as its tokenizer gives. Other captions give other values and the same shapes."""
        caption = next(iter(getattr(pipeline, "labels", None) or ("",)))  # any class, or no text
        with torch.no_grad():
            conditioning = self.condition(pipeline, [caption], 1.0)
        return {**self.probe(denoiser_of(pipeline)), **conditioning}

    def costs(self, denoiser: nn.Module, sites: Sequence[str], probe: Mapping[str, Any] | None = None) -> CostModel:
        """Return graph and MACs over some sites, see `counted`; the call's inputs are `probe`, or else the family's."""
        return counted(denoiser, sites, probe or self.probe(denoiser), self.macs)


def counted(denoiser: nn.Module, sites: Sequence[str], inputs: Mapping[str, Any], paper: PaperMacs) -> CostModel:
    """Return graph and MACs over some sites, from one traced and one counted call `denoiser(**inputs)`. They are kept
    until the denoiser's structure changes."""
    known = _COUNTED.setdefault(denoiser, {})
    key = tuple(sites), paper, _shape(inputs), structure(denoiser)
    if key not in known:
        known[key] = count_costs(denoiser, trace_graph(denoiser, sites, inputs), inputs, paper)
    return known[key]


def denoiser_of(pipeline: Any, component: str | None = None) -> nn.Module:
    """Return the denoiser of a pipeline: the component of that name, such as "transformer_2" or "controlnet.nets.0", or
    else its unet or transformer. Raises `DipgoError` where it has no such module."""
    for name in (component,) if component else ("unet", "transformer"):
        found = pipeline
        for part in name.split("."):
            found = getattr(found, part, None)
        if isinstance(found, nn.Module):
            return found
    missing = f"module {component!r}" if component else "unet and no transformer, so there is nothing to gate"
    others = sorted(name for name, value in vars(pipeline).items() if isinstance(value, nn.Module))
    names = f"; its modules are {', '.join(others)}" if others else ""
    raise DipgoError(f"{type(pipeline).__name__} has no {missing}{names}")


def structure(denoiser: nn.Module) -> int:
    """Return a number that changes with the denoiser's modules, their settings, processors and replaced forwards, and
    the shapes of its weights. The values of weights, and hooks around a forward, do not change it."""
    parts: list[Any] = [_shape(getattr(denoiser, "config", None))]
    for name, module in denoiser.named_modules():
        kind = type(module)  # by its name: a gated module is of a class of its own that answers to the same one
        parts += [name, kind.__module__, kind.__qualname__, _shape(module.forward)]
        parts += [(key, tuple(w.shape)) for key, w in (module._parameters | module._buffers).items() if w is not None]
        for key, value in vars(module).items():
            if not key.startswith("_") and key != "forward":
                parts += [key, value if type(value) in PLAIN else _shape(value)]
    return hash(tuple(parts))


def _shape(value: Any) -> Any:
    """A value as something hashable: tensors by their shapes, functions by identity, other objects by their parts."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    if isinstance(value, Mapping):
        return tuple((str(key), _shape(item)) for key, item in value.items())
    if isinstance(value, (list, tuple, set, frozenset)):
        return tuple(map(_shape, value))
    if type(value) in PLAIN:
        return value
    value = inspect.unwrap(value)  # hooks and compiled forwards are around what they wrap
    if isinstance(value, partial):
        return _shape((value.func, value.args, value.keywords))
    if inspect.isroutine(value) or isinstance(value, type):
        return id(getattr(value, "__func__", value))
    return type(value), tuple((k, v) for k, v in getattr(value, "__dict__", {}).items() if type(v) in PLAIN)


def rows(positive: torch.Tensor, negative: torch.Tensor | None, guided: bool) -> torch.Tensor:
    """Return conditioning as the sampling loop takes it: 2n rows, the unconditional ones first, or n rows unguided."""
    return torch.cat([negative, positive]) if guided else positive


def like(model: nn.Module) -> dict[str, Any]:
    """Return the device and dtype of a model's weights as keyword arguments."""
    weight = next(model.parameters())
    return {"device": weight.device, "dtype": weight.dtype}
