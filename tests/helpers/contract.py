"""Tiny random denoisers of every family, for the contracts that all of them meet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dipgo import BlockGraph, Diffusion, Inputs, Sampler, Schedule, gated, initial_noise, rollout, trace_graph
from tests.conftest import SD_SCHEDULER

CALLS = 6
UNITS = ("output", "delta")
PICTURES = 2


@dataclass
class Instance:
    """A tiny denoiser with its graph over some sites and inputs for a guided run of two pictures."""

    denoiser: torch.nn.Module
    graph: BlockGraph
    probe: dict[str, Any]

    @property
    def conditioning(self) -> dict[str, Any]:
        """Random text of both branches, or two classes against the label for none."""
        named = {k: v for k, v in self.probe.items() if k not in ("sample", "hidden_states", "timestep")}
        generator = torch.Generator().manual_seed(1)

        def rows(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: rows(item) for name, item in value.items()}
            if value is None or not value.is_floating_point():
                return None if value is None else torch.tensor([10, 10, 3, 4])
            return torch.randn(2 * PICTURES, *value.shape[1:], generator=generator)

        return {k: torch.ones_like(rows(v)) if "mask" in k else rows(v) for k, v in named.items()}

    def run(
        self, gates: Schedule | torch.Tensor, backward: bool = False, sampler: Sampler | None = None, **kwargs: Any
    ) -> torch.Tensor:
        calls = len(gates.reuse if isinstance(gates, Schedule) else gates)
        sampler = sampler or Sampler("ddim", SD_SCHEDULER, calls)
        noise = initial_noise([5, 6], (4, 8, 8))
        with gated(self.denoiser, self.graph, gates, **kwargs) as self.trace:
            latents = rollout(Diffusion(self.denoiser, sampler, 3.0), Inputs(noise, self.conditioning))
            if backward:
                latents.square().mean().backward()
            return latents

    def reuse(self, seed: int, share: float = 0.5) -> Schedule:
        reuse = np.random.default_rng(seed).random((CALLS, len(self.graph.sites))) < share
        reuse[0] = False
        return Schedule(self.graph.sites, reuse)


def instance(family, unit: str = "output", sites=None) -> Instance:
    torch.manual_seed(0)
    denoiser, probe = family.tiny(), None
    for parameter in denoiser.parameters():  # DiT and PixArt start with gates of zero, where no block would matter
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    probe = family.probe(denoiser)
    sites = family.sites(denoiser, unit) if sites is None else sites
    return Instance(denoiser, trace_graph(denoiser, sites, probe), probe)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())
