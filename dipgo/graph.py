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


@dataclass(frozen=True)
class Execution:
    """What a schedule makes of every (call, site); all arrays are bool [calls, sites] and exclude each other."""

    computed: np.ndarray
    reused: np.ndarray
    dead: np.ndarray

    @property
    def computed_calls(self) -> np.ndarray:
        """Bool [calls]: calls in which any block runs. In the others the last prediction is held, for free."""
        return self.computed.any(axis=1)


@dataclass(frozen=True)
class BlockGraph:
    """The data flow between gated blocks in one denoiser call.

    `reads[k]` are the indices of the sites whose output site k takes in; `output_reads` those that the
    denoiser's own output takes in. Sites are in order of execution, so every edge points forward.
    """

    sites: tuple[str, ...]
    reads: tuple[frozenset[int], ...]
    output_reads: frozenset[int]

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
        return Execution(computed, reused, dead=~(computed | reused))

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
    that site alone. So operations between blocks (concatenation, addition) need no special care.
    """
    modules = [resolve(denoiser, site) for site in sites]
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
            reads[index] = origin((args, kwargs))

        return hook

    def after(index: int):
        def hook(module, args, output):
            mark(output, frozenset({index}))

        return hook

    for index, module in enumerate(modules):
        handles.append(module.register_forward_pre_hook(before(index), with_kwargs=True))
        handles.append(module.register_forward_hook(after(index)))
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
    return BlockGraph(tuple(sites), tuple(reads[i] for i in range(len(sites))), output_reads)


def resolve(denoiser: nn.Module, site: str) -> nn.Module:
    """The module at a dotted path, or one clear line."""
    try:
        return denoiser.get_submodule(site)
    except AttributeError:
        raise DipgoError(f"{type(denoiser).__name__} has no module {site!r}: site of another family?") from None
