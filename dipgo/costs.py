"""MACs: one dense forward counted per site; a schedule's cost is the sum over the sites that it runs.

Two conventions. `full`: convolutions, linear layers and attention products, every guidance branch, every call.
`paper`: one call a step, and by family (`PaperMacs`) with or without attention products and the second branch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import einsum_flop_jit
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten
from torch.utils.flop_counter import flop_registry

from dipgo.errors import DipgoError
from dipgo.graph import BlockGraph, Execution, Site, resolve
from dipgo.schedule import Schedule

LAYER_OPERATORS = ("conv", "convolution", "linear", "addmm", "mm")  # convolutions and linear layers
ATTENTION_OPERATORS = ("attention", "matmul", "bmm", "baddbmm", "einsum")
MATRIX_PRODUCTS = (
    "matmul",
    "mm",
    "bmm",
    "baddbmm",
    "addmm",
    "addbmm",
    "einsum",
    "linear",
    "conv",
    "attention",
)


@dataclass(frozen=True)
class Costs:
    """MACs of one dense denoiser call at batch 1: `sites` [N] per site, `rest` of all that lies outside of them."""

    sites: np.ndarray
    rest: float

    @property
    def dense(self) -> float:
        """MACs of one call with everything computed."""
        return float(self.sites.sum() + self.rest)

    def per_call(self, execution: Execution) -> np.ndarray:
        """MACs of each call, float [calls]. A call that is not entered is free."""
        return execution.computed @ self.sites + self.rest * execution.entered


@dataclass(frozen=True)
class PaperMacs:
    """How the paper counts a family's MACs: are attention products in, and the second guidance branch."""

    attention: bool = False
    branches: int = 1


@dataclass(frozen=True)
class CostModel:
    """Both conventions for one denoiser, bound to its block graph. `paper_branches`: charged by the paper."""

    graph: BlockGraph
    paper: Costs
    full: Costs
    paper_branches: int = 1

    def pruned_ratio(self, schedule: Schedule, convention: str = "paper") -> float:
        """The share of the dense run's MACs that a schedule saves, its cascade included (Algorithm 1's p*)."""
        costs = getattr(self, convention)
        spent = costs.per_call(self.graph.execute(schedule)).sum()
        return float(1 - spent / (schedule.calls * costs.dense))

    def step_skip_share(self, schedule: Schedule) -> float | None:
        """The share of the saved MACs that lies in calls where no block runs; None if nothing is saved.

        1 means that the schedule is a choice of calls: the same sampler with fewer, unevenly spaced steps.
        """
        execution = self.graph.execute(schedule)
        saved = self.full.dense - self.full.per_call(execution)
        return float(saved[~execution.computed_calls].sum() / saved.sum()) if saved.sum() > 0 else None

    def freed_shares(self) -> np.ndarray:
        """gamma of Eq. 3, float [sites]: the share of a call's MACs that pruning only this block frees."""
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
    """Count one dense forward of `denoiser(**inputs)` (batch 1), per site and operator: with fvcore, or on the meta
    device, where there are shapes and no weights, with torch's own formulas. Both give the same counts.

    Raises `DipgoError` when the forward holds a matrix product that has no count.
    """
    calls: dict[str, tuple] = {}
    handles = [
        resolve(denoiser, Site.parse(site).module).register_forward_pre_hook(
            lambda _, args, kwargs, site=site: calls.update({site: (args, kwargs)}), with_kwargs=True
        )
        for site in graph.sites
    ]
    try:
        whole = _count(denoiser, (), {**inputs, "return_dict": False})
    finally:
        for handle in handles:
            handle.remove()
    sites = [_count_site(denoiser, Site.parse(site), *calls[site]) for site in graph.sites]

    def costs(attention: bool) -> Costs:
        operators = LAYER_OPERATORS + ATTENTION_OPERATORS * attention
        total = sum(whole[operator] for operator in operators)
        per_site = np.array([float(sum(site[operator] for operator in operators)) for site in sites])
        return Costs(per_site, float(total - per_site.sum()))

    return CostModel(graph, costs(paper.attention), costs(True), paper.branches)


def _count_site(denoiser: nn.Module, site: Site, args: tuple, kwargs: Mapping[str, Any]) -> Counter:
    """MACs that reusing a site saves. Its own forward is counted, and not its share of the denoiser's: a final layer
    may borrow parts of a block (DiT's does), which run whether the block does or not."""
    module = resolve(denoiser, site.module)
    counts = _count(module, args, kwargs)
    shortcut = getattr(module, "conv_shortcut", None)
    if site.delta and shortcut is not None:  # the residual stream flows through it in any case
        counts.subtract(_count(shortcut, args[:1], {}))
    return counts


def _count(module: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> Counter:
    """MACs of one forward by the names of operators."""
    call = _Positional(module, (args, dict(kwargs)))
    if any(tensor.is_meta for tensor in call.tensors):  # where fvcore's traces do not run
        with torch.no_grad(), _ProductsOfShapes() as products:
            module(*args, **kwargs)
        return products.macs
    analysis = FlopCountAnalysis(call, call.tensors)
    analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_macs)
    analysis.set_op_handle("aten::baddbmm", _baddbmm_macs)
    analysis.set_op_handle("aten::einsum", _einsum_macs)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    with torch.no_grad():
        counts = Counter(analysis.by_operator())
    uncounted = [op for op in analysis.unsupported_ops() if _is_matrix_product(op)]
    if uncounted:
        raise DipgoError(f"fvcore has no count for {', '.join(sorted(uncounted))}; add a handle in dipgo/costs.py")
    return counts


class _ProductsOfShapes(TorchDispatchMode):
    """Adds up the MACs of all matrix products inside, by torch's formulas and names of operators."""

    def __init__(self) -> None:
        super().__init__()
        self.macs: Counter = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        if func.overloadpacket in flop_registry:
            self.macs[name] += flop_registry[func.overloadpacket](*args, **kwargs, out_val=out) // 2
        elif _is_matrix_product(name):
            raise DipgoError(f"torch has no count for aten::{name}; count this model with weights, off the meta device")
        return out


class _Positional(nn.Module):
    """One call of a module as fvcore traces it: tensors in by position, tensors out."""

    def __init__(self, module: nn.Module, call: tuple[tuple, dict[str, Any]]) -> None:
        super().__init__()
        self.module = module
        self.leaves, self.form = tree_flatten(call)
        self.tensors = tuple(leaf for leaf in self.leaves if isinstance(leaf, torch.Tensor))

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        fresh = iter(tensors)
        leaves = [next(fresh) if isinstance(leaf, torch.Tensor) else leaf for leaf in self.leaves]
        args, kwargs = tree_unflatten(leaves, self.form)
        return tuple(leaf for leaf in tree_leaves(self.module(*args, **kwargs)) if isinstance(leaf, torch.Tensor))


def _is_matrix_product(op: str) -> bool:
    name = op.removeprefix("aten::").strip("_")
    return name in MATRIX_PRODUCTS or "conv" in name or "attention" in name


def _shape(value: Any) -> list[int]:
    return value.type().sizes()


def _attention_macs(inputs: list[Any], outputs: list[Any]) -> Counter:
    """Query-key and attention-value products of scaled_dot_product_attention."""
    (*batch, queries, width), keys, values = _shape(inputs[0]), _shape(inputs[1])[-2], _shape(inputs[2])[-1]
    return Counter({"attention": prod(batch) * queries * keys * (width + values)})


def _einsum_macs(inputs: list[Any], outputs: list[Any]) -> Counter:
    """fvcore charges for a single operand, too, which is merely rearranged (patches to a picture)."""
    operands = list(inputs[1].node().inputs())
    return Counter({"einsum": einsum_flop_jit(inputs, outputs) if len(operands) > 1 else 0})


def _baddbmm_macs(inputs: list[Any], outputs: list[Any]) -> Counter:
    batch, rows, inner = _shape(inputs[1])
    return Counter({"baddbmm": batch * rows * inner * _shape(inputs[2])[-1]})
