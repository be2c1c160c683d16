"""Which block reads which: traced from one forward pass, so that no family needs a topology table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from dipgo.errors import DipgoError
from dipgo.schedule import Schedule

INPUT = -1  # stands for the denoiser's own inputs among the sites that a tensor was made from
DELTA = ":delta"
WHOLE_CALL = ""  # the denoiser itself as the one gated module


@dataclass(frozen=True)
class Site:
    """Where a denoiser is gated, written as `module` or `module:delta`.

    `module` is a dotted path; "" is the denoiser itself, so that its one site is a whole call. Reused is the
    module's last output (the paper's reading: all that only this module needed is freed), or with `delta` what
    its residual branch added last, on top of this call's residual stream (earlier blocks stay alive).
    """

    module: str
    delta: bool = False

    @classmethod
    def parse(cls, text: str) -> Site:
        return cls(text.removesuffix(DELTA), text.endswith(DELTA))

    def __str__(self) -> str:
        return self.module + DELTA * self.delta


@dataclass(frozen=True)
class Execution:
    """What a schedule makes of every (call, site): bool [calls, sites] arrays that exclude each other."""

    computed: np.ndarray
    reused: np.ndarray
    dead: np.ndarray
    entered: np.ndarray
    """Bool [calls]: calls in which the denoiser's forward runs at all. In the others its output is held, for free."""

    @property
    def computed_calls(self) -> np.ndarray:
        """Bool [calls]: calls in which any site is computed."""
        return self.computed.any(axis=1)


@dataclass(frozen=True)
class BlockGraph:
    """The data flow between sites in one denoiser call.

    `reads[k]` are the indices of the sites whose output site k takes in; `output_reads` those that the
    denoiser's own output takes in. Sites are in order of execution, so every edge points forward.
    `bypassed` says that the denoiser's inputs reach its output around the sites, too (a final layer that is
    told the timestep, a residual stream): then a call whose sites are all reused still has a new output.
    """

    sites: tuple[str, ...]
    reads: tuple[frozenset[int], ...]
    output_reads: frozenset[int]
    bypassed: bool = False

    def execute(self, schedule: Schedule) -> Execution:
        """Liveness over the N x T graph of section 3.2, the cascade included.

        A block is needed in a call if a block computed there, or the denoiser's output, reads it, or if it
        is itself reused, and needed, in the next call. What nobody needs is dead and does not run.
        """
        self.check(schedule)
        shape = schedule.reuse.shape
        computed, reused = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
        carried: set[int] = set()  # sites whose value in this call the next call reuses
        for call in reversed(range(schedule.calls)):
            needed = carried | self.output_reads
            carried = set()
            for site in reversed(range(len(self.sites))):
                if site not in needed:
                    continue
                if schedule.reuse[call, site]:
                    reused[call, site] = True
                    carried.add(site)
                else:
                    computed[call, site] = True
                    needed |= self.reads[site]
        # A call in which everything is reused still has a new output where the values are not held.
        entered = computed.any(axis=1) | self.bypassed | (schedule.coefficients is not None)
        return Execution(computed, reused, ~(computed | reused), entered)

    def check(self, schedule: Schedule) -> None:
        """Raise if the schedule was made for other sites than this graph's."""
        if schedule.sites != self.sites:
            odd = sorted(set(schedule.sites) ^ set(self.sites))
            what = f"it differs in {', '.join(odd[:4])}" if odd else "the order differs"
            raise DipgoError(
                f"schedule is for another denoiser: {len(schedule.sites)} sites against {len(self.sites)} here; {what}"
            )


def trace_graph(denoiser: nn.Module, sites: Sequence[str], inputs: Mapping[str, Any]) -> BlockGraph:
    """Run `denoiser(**inputs)` once, without gradients, and read off who consumes whose output.

    Every tensor carries the set of sites that it was made from outside of any site; a site's outputs carry
    that site alone, and for a delta the residual stream's as well. So operations between blocks
    (concatenation, addition) need no special care.
    """
    parsed = [Site.parse(site) for site in sites]
    if len({site.module for site in parsed}) < len(parsed):
        raise DipgoError("a module can be a site once, by its output or its delta; drop one of the two")
    modules = [resolve(denoiser, site.module) for site in parsed]
    origins = WeakTensorKeyDictionary()
    reads: dict[int, frozenset[int]] = {}
    handles = []

    def origin(values: Any) -> frozenset[int]:
        found = (origins.get(v, frozenset()) for v in tree_leaves(values) if isinstance(v, torch.Tensor))
        return frozenset().union(*found)

    def mark(values: Any, who: frozenset[int]) -> None:
        for value in tree_leaves(values):
            if isinstance(value, torch.Tensor):
                origins[value] = who

    class Follow(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            mark(out, origin((args, kwargs)))
            return out

    def before(index: int):
        def hook(module, args, kwargs):
            reads[index] = origin((args, kwargs)) - {INPUT}

        return hook

    def after(index: int):
        def hook(module, args, kwargs, output):
            stream = origin(hidden_states(args, kwargs)) if parsed[index].delta else frozenset()
            mark(output, stream | {index})

        return hook

    for index, module in enumerate(modules):
        handles.append(module.register_forward_pre_hook(before(index), with_kwargs=True))
        handles.append(module.register_forward_hook(after(index), with_kwargs=True))
    mark(inputs, frozenset({INPUT}))
    try:
        with torch.no_grad(), Follow():
            output_reads = origin(denoiser(**inputs))
    finally:
        for handle in handles:
            handle.remove()
    unseen = [site for index, site in enumerate(sites) if index not in reads]
    if unseen:
        raise DipgoError(f"the denoiser never calls {', '.join(unseen)}: not a site of this family")
    if any(read >= index for index, who in reads.items() for read in who):
        raise DipgoError("sites must be listed in order of execution")
    reads_in_order = tuple(reads[index] for index in range(len(sites)))
    return BlockGraph(tuple(sites), reads_in_order, output_reads - {INPUT}, INPUT in output_reads)


def resolve(denoiser: nn.Module, module: str) -> nn.Module:
    """The module at a dotted path, or one clear line."""
    try:
        return denoiser.get_submodule(module)
    except AttributeError:
        raise DipgoError(f"{type(denoiser).__name__} has no module {module!r}: site of another family?") from None


def hidden_states(args: tuple, kwargs: Mapping[str, Any]) -> torch.Tensor:
    """What a block transforms: its first argument, in every model of diffusers."""
    return args[0] if args else kwargs["hidden_states"]
