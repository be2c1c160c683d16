"""MACs: one dense call counted per site; a schedule's cost is the sum over the sites that it runs.

There are two conventions. `full` counts all matrix products: convolutions, linear layers and attention products, in
every guidance branch and every call. `paper` counts what the paper does: one call a step, and by family (`PaperMacs`)
with or without attention products and the second guidance branch.

Products are counted where torch dispatches them, while the denoiser runs (`RanMacs`). So a product counts under
whatever name it was called, what runs twice counts twice, and what does not run does not count; the meta device, where
there are shapes and no weights, gives the same counts. fvcore, the counter of the paper, is the oracle of the tests:
both agree on every family in the suite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import prod
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from dipgo.errors import DipgoError
from dipgo.graph import BlockGraph, Execution, Site, call_once, resolve
from dipgo.schedule import Schedule


@dataclass(frozen=True)
class Costs:
    """MACs of one dense denoiser call at batch 1, in one convention."""

    sites: np.ndarray
    """Float [sites]: what is saved where a site does not run."""
    rest: float
    """All that runs outside of the sites."""

    @property
    def dense(self) -> float:
        """MACs of one call with everything computed."""
        return float(self.sites.sum() + self.rest)

    def per_call(self, execution: Execution) -> np.ndarray:
        """Return the MACs of each call, float [calls]. A call that is not entered is free."""
        return execution.computed @ self.sites + self.rest * execution.entered


@dataclass(frozen=True)
class PaperMacs:
    """How the paper counts a family's MACs."""

    attention: bool = False
    """Whether attention products are counted."""
    branches: int = 1
    """How many guidance branches are counted."""


@dataclass(frozen=True)
class CostModel:
    """Both conventions for one denoiser, bound to its block graph."""

    graph: BlockGraph
    paper: Costs
    full: Costs
    paper_branches: int = 1
    """How many guidance branches the paper charges."""
    probe: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """The inputs of the call that was counted, by the names of the denoiser's arguments."""

    def pruned_ratio(self, schedule: Schedule, convention: str = "paper") -> float:
        """Return the share of the dense run's MACs that a schedule saves (p* of Algorithm 1).

        It counts what the schedule reuses and also the blocks that nobody needs then.
        """
        costs = getattr(self, convention)
        spent = costs.per_call(self.graph.execute(schedule)).sum()
        return float(1 - spent / (schedule.calls * costs.dense))

    def step_skip_share(self, schedule: Schedule) -> float | None:
        """Return the share of the saved MACs that lies in calls where no block runs; None if nothing is saved.

        1 means that the schedule is a choice of calls: the same sampler with fewer, unevenly spaced steps.
        """
        execution = self.graph.execute(schedule)
        saved = self.full.dense - self.full.per_call(execution)
        return float(saved[~execution.computed_calls].sum() / saved.sum()) if saved.sum() > 0 else None

    def freed_shares(self) -> np.ndarray:
        """Return gamma of Eq. 3, float [sites]: the share of a call's MACs that pruning only this block frees."""
        count = len(self.graph.sites)
        shares = []
        for site in range(count):
            reuse = np.zeros((3, count), dtype=bool)  # in the middle of three calls, as in a long run
            reuse[1, site] = True
            spent = self.paper.per_call(self.graph.execute(Schedule(self.graph.sites, reuse)))
            shares.append(1 - spent[1] / self.paper.dense)
        return np.array(shares)


def count_costs(
    denoiser: nn.Module, graph: BlockGraph, inputs: Mapping[str, Any], paper: PaperMacs = PaperMacs()
) -> CostModel:
    """Count one dense call `denoiser(**inputs)` (batch 1, no guidance), site by site.

    Longer texts, larger pictures and adapters cost more: give the inputs that the pipeline passes (`Family.probe_of`).
    Raises `DipgoError` where the call fails or holds a matrix product that has no count.
    """
    ran, spent = RanMacs(), np.zeros((len(graph.sites), 2))

    def meter(row: int, sign: int) -> tuple[Callable, Callable]:
        """Hooks that add to a row of `spent` what runs between them."""
        started = []

        def after(*_: Any) -> None:
            spent[row] += sign * (ran.by_kind - started.pop())

        return lambda *_: started.append(ran.by_kind.copy()), after

    handles = []
    for row, site in enumerate(map(Site.parse, graph.sites)):
        metered = [(resolve(denoiser, site.module), 1)]
        shortcut = getattr(metered[0][0], "conv_shortcut", None)
        if site.delta and shortcut is not None:  # the residual stream flows through it in any case
            metered.append((shortcut, -1))
        for module, sign in metered:
            before, after = meter(row, sign)
            handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        with ran:
            call_once(denoiser, inputs)
    finally:
        for handle in handles:
            handle.remove()

    def costs(kinds: Sequence[int]) -> Costs:
        sites = spent[:, kinds].sum(1)
        return Costs(sites, float(ran.by_kind[kinds].sum() - sites.sum()))

    counted = [0, 1] if paper.attention else [0]
    return CostModel(graph, costs(counted), costs([0, 1]), paper.branches, inputs)


class RanMacs(TorchDispatchMode):
    """Counts the MACs of all matrix products that run inside this context.

    The counts are those of torch's operators at the shapes that they are called with, so that they hold for gated
    denoisers and for other caches, too. Raises `DipgoError` for a product that has no formula here or in torch.
    """

    def __init__(self) -> None:
        super().__init__()
        self._fused: list[bool] = []
        self.by_kind = np.zeros(2)
        """MACs of layers (convolutions, linear and recurrent ones), and of batched products, as in attention."""

    @property
    def total(self) -> float:
        """All MACs so far."""
        return float(self.by_kind.sum())

    def __enter__(self) -> RanMacs:
        self._fused.append(torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)  # a whole encoder layer as one operator would hide its products
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch.backends.mha.set_fastpath_enabled(self._fused.pop())
        super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if _is_composite(func):  # in inference mode torch leaves it to us to take an operator apart
            with self:
                return func.decompose(*args, **kwargs)
        out, formula = func(*args, **kwargs), _formula(func)
        if formula is not None:
            batched = "attention" in func.name() or "bmm" in func.name()
            self.by_kind[int(batched)] += formula(*args, **kwargs, out_val=out)
        return out


@cache
def _is_composite(func: Any) -> bool:
    """Whether torch has an operator made of others and no formula for the whole."""
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    has_parts = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key)
    return has_parts and func.overloadpacket not in flop_registry


@cache
def _formula(func: Any) -> Callable[..., int] | None:
    """The MACs of an operator by its arguments, None where it multiplies no matrices; raises where nobody knows."""
    namespace, name = func._schema.name.split("::")
    if namespace == "aten" and name.rstrip("_") in FORMULAS:
        return FORMULAS[name.rstrip("_")]
    if func.overloadpacket in flop_registry:
        return lambda *args, **kwargs: flop_registry[func.overloadpacket](*args, **kwargs) // 2
    if namespace in KNOWN and not _is_product(name):
        return None
    raise DipgoError(
        f"no count of MACs for the operator {namespace}::{name}; give torch its formula with "
        "torch.utils.flop_counter.register_flop_formula"
    )


def _product(a: torch.Tensor, b: torch.Tensor, *_: Any, **__: Any) -> int:
    return a.numel() * b.shape[-1]


def _added_product(_: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *__: Any, **___: Any) -> int:
    return _product(a, b)


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> int:
    """Return the MACs of the products of queries with keys and of attention with values."""
    return query[..., 0].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def _recurrent(inputs: torch.Tensor, *given: Any, **_: Any) -> int:
    """Every step multiplies by all weight matrices, which follow the inputs one by one or in a list."""
    matrices = given[0] if isinstance(given[0], (list, tuple)) else given[:2]
    return inputs[..., 0].numel() * sum(weight.numel() for weight in matrices if weight.ndim == 2)


def _trilinear(one: torch.Tensor, weight: torch.Tensor, other: torch.Tensor, *new_axes: Any, **_: Any) -> int:
    """Every element of the three factors' common shape takes one multiplication with the weight."""
    shapes = []
    for factor, axes in zip((one, weight, other), new_axes, strict=False):
        shape = list(factor.shape)
        for axis in sorted(axes):
            shape.insert(axis, 1)
        shapes.append(shape)
    return prod(torch.broadcast_shapes(*shapes))


# What torch's own table lacks, or cannot count for grouped heads.
FORMULAS: dict[str, Callable[..., int]] = {
    **dict.fromkeys(("mm", "bmm", "_int_mm"), _product),
    **dict.fromkeys(("addmm", "baddbmm", "addbmm", "_addmm_activation"), _added_product),
    **dict.fromkeys(("mv", "dot", "vdot"), lambda a, *_, **__: a.numel()),
    "addmv": lambda _, matrix, *__, **___: matrix.numel(),
    **{
        f"_scaled_dot_product_{kernel}": _attention
        for kernel in (
            "flash_attention",
            "flash_attention_for_cpu",
            "efficient_attention",
            "cudnn_attention",
            "fused_attention_overrideable",
            "attention_math_for_mps",
        )
    },
    **dict.fromkeys(("mkldnn_rnn_layer", "_cudnn_rnn"), _recurrent),
    "_trilinear": _trilinear,
}
KNOWN = ("aten", "prim", "prims", "profiler")  # namespaces whose operators do what their names say
PRODUCT_WORDS = {
    *("mm", "addmm", "bmm", "baddbmm", "addbmm", "sspaddmm", "hspmm", "mv", "addmv", "dot", "vdot", "matmul", "linear"),
    *("inner", "einsum", "trilinear", "bilinear", "cdist", "attention", "transformer", "rnn", "lstm", "gru"),
}


def _is_product(name: str) -> bool:
    """Whether an operator's name says that it multiplies matrices."""
    words = name.strip("_").split("_")
    if "thnn" in words or "weight" in words[-1:] or "backward" in words:  # gates after their products; packing
        return False
    return any(word in PRODUCT_WORDS or (word.startswith("conv") and word != "convert") for word in words)
