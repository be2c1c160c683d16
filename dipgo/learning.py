"""Learned forecasts: when to compute, and how to combine what was computed, fitted jointly to dense runs.

Of a schedule's coefficients few matter: between two computed calls of a site a sampler adds up what the site's reused
values give, so that one change for each gap and remembered value, on top of a forecast, says nearly all. With so few
unknowns second-order steps are cheap, and as a gap's change keeps its meaning when the gap's ends move, so are trials
of other calls. All that differ in one coefficient or one call run side by side, and share what they have in common.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from dipgo.errors import DipgoError
from dipgo.graph import BlockGraph
from dipgo.lockstep import rollout_together
from dipgo.rules import Forecast, Rule
from dipgo.sampling import Sampler
from dipgo.schedule import Schedule

NUDGE = 0.02  # of a coefficient, for a derivative by differences
DAMPING = (1e-3, 1e-2, 1e-1, 1.0)  # Levenberg's, relative to the diagonal; the best is taken
FLAT = 0.01  # of the mean diagonal, added to each of it for the damping
FLOOR = 1e-6  # of a picture's mean squared error: below it none is a better one
GAIN = 0.002  # in the loss, about 0.01 dB: a round that brings less counts for nothing and is the last
MOVES = 4  # moves of calls that may be made in one round


class Pictures(NamedTuple):
    """Initial noise [n, c, h, w], the denoiser's conditioning and the pictures' seeds, as `rollout` takes them."""

    noise: torch.Tensor
    conditioning: Mapping[str, Any]
    seeds: Sequence[int]


@dataclass(frozen=True)
class LearnConfig:
    """At most `rounds`, each a step of the coefficients of the last `memory` values and moves of computed calls by up
    to `shift` (0: none). It starts from a forecast of `order`; `together` pictures run in one batch."""

    memory: int = 3
    rounds: int = 6
    shift: int = 2
    order: int = 1
    together: int = 200

    def __post_init__(self) -> None:
        for name, least in (("memory", self.order + 1), ("rounds", 0), ("shift", 0), ("together", 1)):
            if getattr(self, name) < least:
                raise DipgoError(f"learn.{name} is {getattr(self, name)}; it must be at least {least}")


@dataclass(frozen=True)
class Learned:
    """A schedule after `round` rounds and its loss: the mean over pictures of the log of the latents' mean squared
    error to the dense run's. Round 0 is the start."""

    round: int
    loss: float
    schedule: Schedule


@dataclass(frozen=True)
class _State:
    """Gates, and per gap of a site [gaps, sites, memory] the change to the coefficients that the rule gives.

    A site's gap number n comes after its n-th computed call.
    """

    reuse: np.ndarray
    changes: np.ndarray

    def schedule(self, graph: BlockGraph, rule: Rule) -> Schedule:
        plain = Schedule(graph.sites, self.reuse)
        computed = graph.execute(plain).computed
        given = rule(computed)
        gaps = np.cumsum(computed, axis=0)
        coefficients = self.changes[gaps, np.arange(len(graph.sites))]
        coefficients[..., : given.shape[2]] += given
        return replace(plain, coefficients=coefficients)


def learn_forecast(
    config: LearnConfig,
    denoiser: nn.Module,
    graph: BlockGraph,
    schedule: Schedule,
    sampler: Sampler,
    pictures: Pictures,
    guidance: float,
) -> Iterator[Learned]:
    """From a schedule's gates, with as many calls computed. Yields the start and every round that is better, up to the
    first that is not. The schedule's coefficients are not read: it starts as the forecast of `config.order` (0 holds).
    """
    rule = Forecast(sampler.noise_ratios, config.order)

    def run(schedules: Sequence[Schedule]) -> torch.Tensor:
        """Final latents [S, n, numbers of a picture]"""
        size = max(1, config.together // len(pictures.noise))
        parts = [schedules[first : first + size] for first in range(0, len(schedules), size)]
        inputs = pictures.noise, pictures.conditioning, guidance, pictures.seeds
        found = [rollout_together(denoiser, graph, part, sampler, *inputs).flatten(2) for part in parts]
        return torch.cat(found).double()

    dense = run([Schedule.dense(graph.sites, sampler.calls)])

    def errors(states: Sequence[_State]) -> torch.Tensor:
        return run([state.schedule(graph, rule) for state in states]) - dense

    gaps = int(graph.execute(Schedule(graph.sites, schedule.reuse)).computed.sum(axis=0).max()) + 1
    best = _State(schedule.reuse, np.zeros((gaps, len(graph.sites), config.memory)))
    error = errors([best])[0]
    yield Learned(0, _loss(error), best.schedule(graph, rule))
    for number in range(1, config.rounds + 1):
        before = _loss(error)
        best, error = _step(graph, best, error, errors)
        if config.shift:
            best, error = _move(graph, best, error, errors, config.shift)
        if before - _loss(error) < GAIN:
            return
        yield Learned(number, _loss(error), best.schedule(graph, rule))


Errors = Callable[[Sequence[_State]], torch.Tensor]


def _loss(error: torch.Tensor) -> float:
    return (error.square().mean(1) + FLOOR).log().mean().item()


def _better(
    tried: Sequence[_State], errors: torch.Tensor, best: _State, error: torch.Tensor
) -> tuple[_State, torch.Tensor]:
    """The best of the tried states, or the one before where none is better."""
    losses = [_loss(each) for each in errors]
    index = int(np.argmin(np.nan_to_num(losses, nan=np.inf)))
    return (tried[index], errors[index]) if losses[index] < _loss(error) else (best, error)


def _step(graph: BlockGraph, state: _State, error: torch.Tensor, errors: Errors) -> tuple[_State, torch.Tensor]:
    """A Gauss-Newton step of the changes."""
    directions = _directions(graph, state)
    if not directions:
        raise DipgoError("this schedule reuses nothing, so there is nothing to learn")
    nudged = [replace(state, changes=state.changes + NUDGE * direction) for direction in directions]
    slopes = (errors(nudged) - error) / NUDGE
    weighed = slopes / (error.square().mean(1, keepdim=True) + FLOOR)  # the log's derivative: pictures count alike
    products = torch.einsum("pnd,qnd->pq", weighed, slopes).cpu().numpy()
    pull = torch.einsum("pnd,nd->p", weighed, error).cpu().numpy()
    tried = []
    for damping in DAMPING:
        # A normalisation behind a site may leave a direction without any effect, hence the part of the mean.
        damped = products + damping * np.diag(products.diagonal() + FLAT * products.diagonal().mean())
        step = np.tensordot(np.linalg.solve(damped, pull), np.stack(directions), 1)
        tried.append(replace(state, changes=state.changes - step))
    return _better(tried, errors(tried), state, error)


def _directions(graph: BlockGraph, state: _State) -> list[np.ndarray]:
    """One for every gap in which a site is reused and every value that is remembered in it."""
    execution = graph.execute(Schedule(graph.sites, state.reuse))
    gaps = np.cumsum(execution.computed, axis=0)
    found = []
    for site in range(len(graph.sites)):
        for gap in np.unique(gaps[execution.reused[:, site], site]):
            for k in range(min(gap, state.changes.shape[2])):
                direction = np.zeros_like(state.changes)
                direction[gap, site, k] = 1
                found.append(direction)
    return found


def _move(
    graph: BlockGraph, state: _State, error: torch.Tensor, errors: Errors, shift: int
) -> tuple[_State, torch.Tensor]:
    """The best of single moves, and of the best few made together."""
    moves = [move for move in _moves(state.reuse, shift) if _as_much(graph, state.reuse, _moved(state.reuse, [move]))]
    if not moves:
        return state, error
    found = errors([replace(state, reuse=_moved(state.reuse, [move])) for move in moves])
    ranked = sorted(zip((_loss(each) for each in found), moves, strict=True))
    chosen: list[tuple[int, int]] = []
    tried = []
    for loss, move in ranked:
        apart = all(max(move) < min(other) or min(move) > max(other) for other in chosen)
        if loss < _loss(error) and apart and len(chosen) < MOVES:
            chosen.append(move)
            reuse = _moved(state.reuse, chosen)
            if _as_much(graph, state.reuse, reuse):
                tried.append(replace(state, reuse=reuse))
    return _better(tried, errors(tried), state, error) if tried else (state, error)


def _moves(reuse: np.ndarray, shift: int) -> list[tuple[int, int]]:
    """(from, to): gates of two calls that may change places; call 0 stays, and one that computes is moved."""
    calls = range(1, len(reuse))
    pairs = [(a, b) for a in calls for b in calls if 0 < abs(a - b) <= shift and not reuse[a].all()]
    return [(a, b) for a, b in pairs if reuse[b].all() and reuse[min(a, b) + 1 : max(a, b)].all()]


def _moved(reuse: np.ndarray, moves: Sequence[tuple[int, int]]) -> np.ndarray:
    order = np.arange(len(reuse))
    for a, b in moves:
        order[[a, b]] = order[[b, a]]
    return reuse[order]


def _as_much(graph: BlockGraph, one: np.ndarray, other: np.ndarray) -> bool:
    """Whether both compute each site equally often, the cascade included."""
    computed = [graph.execute(Schedule(graph.sites, reuse)).computed.sum(axis=0) for reuse in (one, other)]
    return bool((computed[0] == computed[1]).all())
