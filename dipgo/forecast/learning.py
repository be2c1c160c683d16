"""Learned forecasts: when to compute, and how to combine what was computed, fitted jointly to dense runs.

Of a schedule's coefficients few matter: between two computed calls of a site a sampler adds up what the site's reused
values give, so that one change for each gap, remembered value and guidance branch, on top of a forecast, says nearly
all; where gaps are many, neighbours share theirs. With so few unknowns second-order steps are cheap, and as a gap's
change keeps its meaning when the gap's ends move, so are trials of other calls. All that differ in one coefficient or
in where their calls are run side by side, and share what they have in common.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from dipgo.errors import DipgoError
from dipgo.execute.lockstep import rollout_together
from dipgo.forecast.rules import Forecast, Rule
from dipgo.graph import BlockGraph, Execution
from dipgo.sampling import Diffusion, Inputs
from dipgo.schedule import Schedule

NUDGE = 0.02  # of a coefficient, for a derivative by differences
DAMPING = (1e-3, 1e-2, 1e-1, 1.0)  # Levenberg's, relative to the diagonal; the best is taken
FLAT = 0.01  # of the mean diagonal, added to each of it for the damping
FLOOR = 1e-6  # of a picture's mean squared error: below it none is a better one
GAIN = 0.002  # in the loss, about 0.01 dB: a round that brings less counts for nothing and is the last
MOVES = 4  # moves of calls that may be made in one round


@dataclass(frozen=True)
class LearnConfig:
    """At most `rounds`, each a step of the coefficients of the last `memory` values and moves of computed calls by up
    to `shift` (0: none). Neighbouring gaps between computed calls are learned together in at most so many `groups`.
    It starts from a forecast of `order`; `together` pictures run in one batch."""

    memory: int = 3
    rounds: int = 6
    shift: int = 2
    groups: int = 10
    order: int = 1
    together: int = 200

    def __post_init__(self) -> None:
        least_of = {"memory": self.order + 1, "rounds": 0, "shift": 0, "groups": 1, "together": 1}
        for name, least in least_of.items():
            if getattr(self, name) < least:
                raise DipgoError(f"learn.{name} is {getattr(self, name)}; it must be at least {least}")

    def tried(self, gaps: int, branches: int) -> int:
        """How many schedules at most are tried where one site is computed `gaps` times in a picture."""
        groups = min(gaps, self.groups)
        moves = 2 * self.shift * groups + MOVES if self.shift else 0
        return self.rounds * (groups * self.memory * branches + len(DAMPING) + moves)


@dataclass(frozen=True)
class Learned:
    """A schedule after `round` rounds and its loss: the mean over pictures of the log of the latents' mean squared
    error to the dense run's. Round 0 is the start."""

    round: int
    loss: float
    schedule: Schedule


@dataclass(frozen=True)
class _State:
    """Gates, and of every group of a site's gaps [groups, sites, memory, branches] the change to the coefficients that
    the rule gives. A site's gap is what follows a call that computes it, up to the next."""

    reuse: np.ndarray
    changes: np.ndarray

    def groups(self, computed: np.ndarray) -> np.ndarray:
        """The group of the gap that a call belongs to, of every site, int [calls, sites]."""
        gaps = np.cumsum(computed, axis=0) - 1
        return gaps * len(self.changes) // (gaps.max() + 1)

    def schedule(self, graph: BlockGraph, rule: Rule) -> Schedule:
        computed = _execution(graph, self.reuse).computed
        given = rule(computed)
        coefficients = self.changes[self.groups(computed), np.arange(len(graph.sites))]
        coefficients[:, :, : given.shape[2]] += given[..., None]
        return Schedule(graph.sites, self.reuse, coefficients)


def learn_forecast(
    config: LearnConfig, diffusion: Diffusion, graph: BlockGraph, schedule: Schedule, inputs: Inputs
) -> Iterator[Learned]:
    """From a schedule's gates, with as many calls computed. Yields the start and every round that is better, up to the
    first that is not. The schedule's coefficients are not read: it starts as the forecast of `config.order` (0 holds).
    """
    sampler, guidance = diffusion.sampler, diffusion.guidance
    rule = Forecast(sampler.noise_ratios, config.order)

    def run(schedules: Sequence[Schedule]) -> torch.Tensor:
        """Final latents [S, n, numbers of a picture]"""
        size = max(1, config.together // len(inputs))
        parts = [schedules[first : first + size] for first in range(0, len(schedules), size)]
        found = [rollout_together(diffusion, graph, part, inputs).flatten(2) for part in parts]
        return torch.cat(found).double()

    dense = run([Schedule.dense(graph.sites, sampler.calls)])

    def errors(states: Sequence[_State]) -> torch.Tensor:
        return run([state.schedule(graph, rule) for state in states]) - dense

    gaps = int(_execution(graph, schedule.reuse).computed.sum(axis=0).max())
    branches = len(_parts(guidance))
    best = _State(schedule.reuse, np.zeros((min(gaps, config.groups), len(graph.sites), config.memory, branches)))
    error = errors([best])[0]
    yield Learned(0, _loss(error), best.schedule(graph, rule))
    for number in range(1, config.rounds + 1):
        before = _loss(error)
        best, error = _step(graph, best, error, errors, guidance)
        if config.shift:
            best, error = _move(graph, best, error, errors, config.shift)
        if before - _loss(error) < GAIN:
            return
        yield Learned(number, _loss(error), best.schedule(graph, rule))


def _execution(graph: BlockGraph, reuse: np.ndarray) -> Execution:
    """What runs under gates alone, which hold."""
    return graph.execute(Schedule(graph.sites, reuse))


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


def _step(
    graph: BlockGraph, state: _State, error: torch.Tensor, errors: Errors, guidance: float
) -> tuple[_State, torch.Tensor]:
    """A Gauss-Newton step of the changes."""
    directions = _directions(graph, state, guidance)
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


def _directions(graph: BlockGraph, state: _State, guidance: float) -> list[np.ndarray]:
    """One for every group of gaps in which a site is reused, every value that is remembered in it, and branch."""
    execution = _execution(graph, state.reuse)
    groups, values = state.groups(execution.computed), np.cumsum(execution.computed, axis=0)
    remembered = np.zeros(state.changes.shape[:2], dtype=int)
    calls, sites = np.nonzero(execution.reused)
    np.maximum.at(remembered, (groups[calls, sites], sites), values[calls, sites])
    found = []
    for index in np.ndindex(state.changes.shape[:3]):
        if index[2] < remembered[index[:2]]:
            for parts in _parts(guidance):
                found.append(np.zeros_like(state.changes))
                found[-1][index] = parts
    return found


def _parts(guidance: float) -> list[tuple[float, ...]]:
    """Changes of the branches' coefficients that change the guided prediction by itself, or by what guidance amplifies:
    the conditional prediction less the unconditional one. Each alone, the branches are too much alike."""
    return [(1, 1), (1 / (guidance - 1), 1 / guidance)] if guidance > 1 else [(1,)]


def _move(
    graph: BlockGraph, state: _State, error: torch.Tensor, errors: Errors, shift: int
) -> tuple[_State, torch.Tensor]:
    """The best of single moves, and of the best few made together."""
    single = {tuple(move): moved for move in _moves(state, shift) if (moved := _moved(graph, state, move))}
    if not single:
        return state, error
    losses = [_loss(each) for each in errors(list(single.values()))]
    chosen, tried = np.zeros(len(next(iter(single))), dtype=int), []
    for loss, move in sorted(zip(losses, single, strict=True)):
        apart = not np.any(chosen * move)
        moved = _moved(graph, state, chosen + move)
        if loss < _loss(error) and apart and moved and len(tried) < MOVES:
            chosen = chosen + move
            tried.append(moved)
    return _better(tried, errors(tried), state, error) if tried else (state, error)


def _moves(state: _State, shift: int) -> Iterator[np.ndarray]:
    """By how much each call that computes is moved: all of one group, but call 0 stays."""
    count = len(_computing(state.reuse))
    groups = np.arange(count) * len(state.changes) // count
    for group in np.unique(groups[1:]):
        for by in (*range(-shift, 0), *range(1, shift + 1)):
            yield np.where((groups == group) & (np.arange(count) > 0), by, 0)


def _computing(reuse: np.ndarray) -> np.ndarray:
    return np.flatnonzero(~reuse.all(axis=1))


def _moved(graph: BlockGraph, state: _State, move: np.ndarray) -> _State | None:
    """None where calls would pass each other, or a site would be computed more or less often, the cascade included."""
    old = _computing(state.reuse)
    new = old + move
    if new[-1] >= len(state.reuse) or (np.diff(new) < 1).any():
        return None
    reuse = np.ones_like(state.reuse)
    reuse[new] = state.reuse[old]
    one, other = (_execution(graph, gates).computed.sum(axis=0) for gates in (state.reuse, reuse))
    return replace(state, reuse=reuse) if (one == other).all() else None
