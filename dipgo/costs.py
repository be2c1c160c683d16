"""MACs: one dense forward counted per site; a schedule's cost is the sum over the blocks that it runs.

Two conventions. `paper`: convolutions and linear layers of one guidance branch, attention products left out,
one call a step. `full`: attention products as well, every guidance branch, every call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

from dipgo.errors import DipgoError
from dipgo.graph import BlockGraph
from dipgo.schedule import Schedule

LAYER_OPERATORS = ("conv", "linear", "addmm")  # fvcore's names for convolutions and linear layers
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
    """MACs of one dense denoiser call at batch 1: `sites` [N] per gated block, `rest` of all outside of them."""

    sites: np.ndarray
    rest: float

    @property
    def dense(self) -> float:
        """MACs of one call with everything computed."""
        return float(self.sites.sum() + self.rest)

    def per_call(self, computed: np.ndarray) -> np.ndarray:
        """MACs of each call, float [calls], given what is computed, bool [calls, sites]. An idle call is free."""
        return computed @ self.sites + self.rest * computed.any(axis=1)


@dataclass(frozen=True)
class CostModel:
    """Both conventions for one denoiser, bound to its block graph."""

    graph: BlockGraph
    paper: Costs
    full: Costs

    def pruned_ratio(self, schedule: Schedule, convention: str = "paper") -> float:
        """The share of the dense run's MACs that a schedule saves, its cascade included (Algorithm 1's p*)."""
        costs = getattr(self, convention)
        spent = costs.per_call(self.graph.execute(schedule).computed).sum()
        return float(1 - spent / (schedule.calls * costs.dense))

    def step_skip_share(self, schedule: Schedule) -> float | None:
        """The share of the saved MACs that lies in calls where no block runs; None if nothing is saved.

        1 means that the schedule is the same sampler with fewer, unevenly spaced steps.
        """
        spent = self.full.per_call(self.graph.execute(schedule).computed)
        saved = self.full.dense - spent
        return float(saved[spent == 0].sum() / saved.sum()) if saved.sum() > 0 else None

    def freed_shares(self) -> np.ndarray:
        """gamma of Eq. 3, float [sites]: the share of a call's MACs that pruning only this block frees."""
        count = len(self.graph.sites)
        shares = []
        for site in range(count):
            reuse = np.zeros((3, count), dtype=bool)  # in the middle of three calls, as in a long run
            reuse[1, site] = True
            spent = self.paper.per_call(self.graph.execute(Schedule(self.graph.sites, reuse)).computed)
            shares.append(1 - spent[1] / self.paper.dense)
        return np.array(shares)


def count_costs(denoiser: nn.Module, graph: BlockGraph, inputs: Mapping[str, Any]) -> CostModel:
    """Count one dense forward of `denoiser(**inputs)` (batch 1) with fvcore, per site and operator.

    Raises `DipgoError` when the forward holds a matrix product that fvcore cannot count.
    """
    tensors = {key: value for key, value in inputs.items() if isinstance(value, torch.Tensor)}
    analysis = FlopCountAnalysis(_Positional(denoiser, tuple(tensors)), tuple(tensors.values()))
    analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_macs)
    analysis.set_op_handle("aten::baddbmm", _baddbmm_macs)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    with torch.no_grad():
        by_module = analysis.by_module_and_operator()
    uncounted = [op for op in analysis.unsupported_ops() if _is_matrix_product(op)]
    if uncounted:
        raise DipgoError(f"fvcore has no count for {', '.join(sorted(uncounted))}; add a handle in dipgo/costs.py")

    def costs(operators: Sequence[str]) -> Costs:
        def macs(module: str) -> float:
            counts: Counter = by_module[f"denoiser.{module}" if module else "denoiser"]
            return float(sum(counts[op] for op in operators))

        sites = np.array([macs(site) for site in graph.sites])
        return Costs(sites, macs("") - sites.sum())

    return CostModel(graph, costs(LAYER_OPERATORS), costs(LAYER_OPERATORS + ATTENTION_OPERATORS))


class _Positional(nn.Module):
    """fvcore traces positional tensors only."""

    def __init__(self, denoiser: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.denoiser, self.names = denoiser, names

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return self.denoiser(**dict(zip(self.names, tensors, strict=True)), return_dict=False)[0]


def _is_matrix_product(op: str) -> bool:
    name = op.removeprefix("aten::").strip("_")
    return name in MATRIX_PRODUCTS or "conv" in name or "attention" in name


def _shape(value: Any) -> list[int]:
    return value.type().sizes()


def _attention_macs(inputs: list[Any], outputs: list[Any]) -> Counter:
    """Query-key and attention-value products of scaled_dot_product_attention."""
    (*batch, queries, width), keys, values = _shape(inputs[0]), _shape(inputs[1])[-2], _shape(inputs[2])[-1]
    return Counter({"attention": prod(batch) * queries * keys * (width + values)})


def _baddbmm_macs(inputs: list[Any], outputs: list[Any]) -> Counter:
    batch, rows, inner = _shape(inputs[1])
    return Counter({"baddbmm": batch * rows * inner * _shape(inputs[2])[-1]})
