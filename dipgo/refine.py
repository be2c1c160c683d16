"""Learned coefficients: Gauss-Newton on what a schedule's reused values do to the final latents.

A schedule has few coefficients that matter: between two computed calls of a site the sampler adds up what its reused
values give, so that one step a gap and remembered value says nearly all. With so few unknowns second-order steps are
cheap: each is one batch of runs, side by side, that differ in one coefficient.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from dipgo.errors import DipgoError
from dipgo.gating import gated
from dipgo.graph import BlockGraph
from dipgo.lockstep import rollout_together
from dipgo.sampling import Sampler, rollout
from dipgo.schedule import Schedule

NUDGE = 0.02  # of a coefficient, for a derivative by differences
DAMPING = (1e-4, 1e-3, 1e-2, 1e-1)  # Levenberg's, relative to the diagonal; the best is taken
FLOOR = 1e-6  # of a picture's mean squared error: below it none is a better one


class Pictures(NamedTuple):
    """Initial noise [n, c, h, w], the denoiser's conditioning and the pictures' seeds, as `rollout` takes them."""

    noise: torch.Tensor
    conditioning: Mapping[str, Any]
    seeds: Sequence[int]


@dataclass(frozen=True)
class RefineConfig:
    """`rounds` of Gauss-Newton over the coefficients of the last `memory` values; `together` rows run in one batch."""

    memory: int = 3
    rounds: int = 3
    together: int = 200

    def __post_init__(self) -> None:
        for name in ("memory", "rounds", "together"):
            if getattr(self, name) < 1:
                raise DipgoError(f"refine.{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True)
class Refined:
    """A schedule after `round` rounds, and its loss: the mean over pictures of the log of the latents' mean squared
    error to the dense run's. Round 0 is the start."""

    round: int
    loss: float
    schedule: Schedule


@torch.no_grad()
def refine(
    config: RefineConfig,
    denoiser: nn.Module,
    graph: BlockGraph,
    schedule: Schedule,
    sampler: Sampler,
    pictures: Pictures,
    guidance: float,
) -> Iterator[Refined]:
    """Fit a schedule's coefficients to the dense runs of `pictures`; what is computed stays. Yields every round, the
    start first; ends early where no step is better."""
    directions = _directions(graph, schedule, config.memory)
    with gated(denoiser, graph, Schedule.dense(graph.sites, sampler.calls)):
        dense = rollout(denoiser, sampler, pictures.noise, pictures.conditioning, guidance, pictures.seeds)
    start = np.zeros((*schedule.reuse.shape, config.memory))
    if schedule.coefficients is None:
        start[schedule.reuse, 0] = 1
    else:
        start[..., : schedule.depth] = schedule.coefficients[..., : config.memory]

    def errors(coefficients: Sequence[np.ndarray]) -> torch.Tensor:
        """[S, n, numbers of a picture]"""
        found, size = [], max(1, config.together // len(dense))
        for first in range(0, len(coefficients), size):
            schedules = [replace(schedule, coefficients=each) for each in coefficients[first : first + size]]
            latents = rollout_together(denoiser, graph, schedules, sampler, *pictures[:2], guidance, pictures.seeds)
            found.append((latents - dense).flatten(2))
        return torch.cat(found).double()

    now = errors([start])[0]
    loss = _loss(now)
    yield Refined(0, loss, replace(schedule, coefficients=start))
    for number in range(1, config.rounds + 1):
        slopes = (errors([start + NUDGE * d for d in directions]) - now) / NUDGE
        weight = 1 / (now.square().mean(1, keepdim=True) + FLOOR)  # the log's derivative: all pictures count alike
        products = torch.einsum("pnd,qnd->pq", slopes * weight, slopes).cpu().numpy()
        pull = torch.einsum("pnd,nd->p", slopes * weight, now).cpu().numpy()
        tried = []
        for damping in DAMPING:
            damped = products + np.diag(damping * products.diagonal() + FLOOR * products.trace() / len(products))
            tried.append(start - np.tensordot(np.linalg.solve(damped, pull), np.stack(directions), 1))
        reached = errors(tried)
        losses = [_loss(each) for each in reached]
        best = int(np.argmin(np.nan_to_num(losses, nan=np.inf)))
        if not losses[best] < loss:
            return
        start, now, loss = tried[best], reached[best], losses[best]
        yield Refined(number, loss, replace(schedule, coefficients=start))


def _loss(errors: torch.Tensor) -> float:
    return (errors.square().mean(1) + FLOOR).log().mean().item()


def _directions(graph: BlockGraph, schedule: Schedule, memory: int) -> list[np.ndarray]:
    """One direction [calls, sites, memory] for every gap between computed calls of a site and each value remembered
    in it: a change of that value's coefficient in all calls of the gap."""
    execution = graph.execute(schedule)
    found = []
    for site in range(len(graph.sites)):
        gap = np.cumsum(execution.computed[:, site])  # the number of values computed so far
        reused = execution.reused[:, site]
        for number in np.unique(gap[reused]):
            for k in range(min(memory, number)):
                direction = np.zeros((*schedule.reuse.shape, memory))
                direction[reused & (gap == number), site, k] = 1
                found.append(direction)
    if not found:
        raise DipgoError("this schedule reuses nothing, so there are no coefficients to learn")
    return found
