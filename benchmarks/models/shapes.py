"""Plans of the paper's models, with their MACs counted on shapes alone, without weights."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any

import diffusers
import torch
from torch import nn

from baselines import Plan, PlanContext, method
from benchmarks.supply.paper_configs import PaperModel, paper_model
from dipgo import Sampler, family_of


def without_weights(model: PaperModel, **changes: Any) -> nn.Module:
    """Return the denoiser on the meta device, where it has shapes but takes no memory.

    changes: changes to its configuration, such as `sample_size`.
    """
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # BK-SDM copies weights, which have no values here
        denoiser = model.denoiser(**changes)
    return denoiser.eval().requires_grad_(False)


def plan(name: str, sampler: Sampler, method_name: str = "dense", params: Mapping[str, Any] | None = None) -> Plan:
    """Return the plan of a method that needs no pictures, for a model of the paper, whose MACs are counted once."""
    denoiser = _denoiser(name)
    family = family_of(denoiser)
    costs = family.costs(denoiser, family.sites(denoiser))
    return method(method_name).plan(PlanContext(denoiser, costs, sampler, params or {}))


@cache
def _denoiser(name: str) -> nn.Module:
    diffusers.utils.logging.set_verbosity_error()  # it warns of a cast that changes nothing
    return without_weights(paper_model(name))
