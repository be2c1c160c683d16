"""Learned forecasts: which calls to compute, and how to combine what was computed, fitted jointly to dense runs.

Few of a schedule's coefficients matter. Between two computed calls of a site, a sampler adds up what the site's reused
values give; so one change on top of a forecast, for each gap, remembered value and guidance branch, says nearly all.
Where gaps are many, neighbours share their changes. With so few unknowns second-order steps are cheap. A gap's change
keeps its meaning when the gap's ends move, so that other places of the calls are cheap to try as well. All candidate
schedules of a round, which differ in one coefficient or in where their calls are, run in one batch, which computes what
they have in common once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch

from dipgo.errors import DipgoError
from dipgo.execute.lockstep import rollout_together
from dipgo.graph import BlockGraph, Execution, Site
from dipgo.newton import DAMPING, damped_steps, log_loss
from dipgo.rules import Forecast, Rule
from dipgo.sampling import Diffusion, Inputs
from dipgo.schedule import Schedule
from dipgo.state import State, copied

NUDGE = 0.02  # the change of a coefficient for a derivative by differences
GAIN = 0.002  # about 0.01 dB: a round that lowers the loss by less is not yielded and is the last
MOVES = 4  # moves of calls that may be made in one round


@dataclass(frozen=True)
class LearnConfig:
    """Settings of `learn_forecast`."""

    memory: int = 3
    """How many of a site's last values are combined."""
    rounds: int = 6
    """Rounds at most; each is a step of the coefficients and then moves of computed calls."""
    shift: int = 2
    """By how many calls a computed call may move in a round; 0 moves none."""
    groups: int = 10
    """Gaps between computed calls are learned in at most so many groups of neighbours."""
    order: int = 1
    """The order of the forecast that the learning starts from; 0 holds."""
    together: int = 200
    """How many pictures run in one batch."""
    shared: bool = False
    """Whether all sites of a kind share their changes, such as the feed-forward layers of all blocks."""

    def __post_init__(self) -> None:
        least_of = {"memory": self.order + 1, "rounds": 0, "shift": 0, "groups": 1, "together": 1}
        for name, least in least_of.items():
            if getattr(self, name) < least:
                raise DipgoError(f"learn.{name} is {getattr(self, name)}; it must be at least {least}")

    def tried(self, gaps: int, branches: int) -> int:
        """Return how many schedules are tried at most where one site is computed `gaps` times in a picture."""
        groups = min(gaps, self.groups)
        moves = 2 * self.shift * groups + MOVES if self.shift else 0
        return self.rounds * (groups * self.memory * branches + len(DAMPING) + moves)


@dataclass(frozen=True)
class Learned:
    """Where the learning stands after a round."""

    round: int
    """Rounds made; 0 is the start."""
    loss: float
    """The mean over pictures of the log of the latents' mean squared error to the dense run's."""
    schedule: Schedule
    state: Callable[[], State] = field(repr=False, compare=False)
    """Returns what `learn_forecast(..., resume=...)` takes to go on from here."""


@dataclass(frozen=True)
class _Trial:
    """A candidate."""

    reuse: np.ndarray
    """Its gates, bool [calls, sites]."""
    changes: np.ndarray
    """Changes to the coefficients that the rule gives, [groups, sites, memory, branches]: one for each group of gaps of
    a site. A gap is what follows a call that computes the site, up to the next such call."""

    def groups(self, computed: np.ndarray) -> np.ndarray:
        """Return the group of the gap that each call belongs to, for each site, int [calls, sites]."""
        gaps = np.cumsum(computed, axis=0) - 1
        return gaps * len(self.changes) // (gaps.max() + 1)

    def schedule(self, graph: BlockGraph, rule: Rule) -> Schedule:
        computed = _execution(graph, self.reuse).computed
        given = rule(computed)
        coefficients = self.changes[self.groups(computed), np.arange(len(graph.sites))]
        coefficients[:, :, : given.shape[2]] += given[..., None]
        return Schedule(graph.sites, self.reuse, coefficients)


def learn_forecast(
    config: LearnConfig,
    diffusion: Diffusion,
    graph: BlockGraph,
    schedule: Schedule,
    inputs: Inputs,
    resume: State | None = None,
) -> Iterator[Learned]:
    """Fit a schedule with as many computed calls to the dense run. Yield the start and every round that is better, up
    to the first that is not.

    config: the settings.
    diffusion: the denoiser, its sampler and the guidance scale.
    graph: the graph of the schedule's sites.
    schedule: says which calls to compute at first. Its coefficients are not read: the start is the forecast of
        `config.order`.
    inputs: the pictures to learn from.
    resume: the `state()` of an earlier round with the same settings and inputs. Its round is yielded again, and those
        after it are the same, bit for bit, as without the stop.

    Raises `DipgoError` where the schedule reuses nothing, and for a forecast from a start at zero SNR.
    """
    sampler, guidance = diffusion.sampler, diffusion.guidance
    rule = Forecast(sampler.noise_ratios, config.order)
    kinds = [Site.parse(site).kind if config.shared else site for site in graph.sites]

    def run(schedules: Sequence[Schedule]) -> torch.Tensor:
        """Return final latents [S, n, numbers of a picture]."""
        size = max(1, config.together // len(inputs))
        parts = [schedules[first : first + size] for first in range(0, len(schedules), size)]
        found = [rollout_together(diffusion, graph, part, inputs).flatten(2) for part in parts]
        return torch.cat(found).double()

    dense = run([Schedule.dense(graph.sites, sampler.calls)])

    def errors(trials: Sequence[_Trial]) -> torch.Tensor:
        return run([trial.schedule(graph, rule) for trial in trials]) - dense

    def after(number: int, best: _Trial, error: torch.Tensor) -> Learned:
        def state() -> State:
            tensors = {"reuse": torch.tensor(best.reuse), "changes": torch.tensor(best.changes), "error": error}
            return State(copied(tensors), {"config": asdict(config), "round": number})

        return Learned(number, log_loss(error), sampler.stamped(best.schedule(graph, rule)), state)

    if resume is None:
        gaps = int(_execution(graph, schedule.reuse).computed.sum(axis=0).max())
        branches = len(_parts(guidance))
        changes = np.zeros((min(gaps, config.groups), len(graph.sites), config.memory, branches))
        done, best = 0, _Trial(schedule.reuse, changes)
        error = errors([best])[0]
    else:
        resume.check(asdict(config))
        done, kept = resume.data["round"], resume.tensors
        best, error = _Trial(kept["reuse"].numpy(), kept["changes"].numpy()), kept["error"].to(dense.device)
    yield after(done, best, error)
    for number in range(done + 1, config.rounds + 1):
        before = log_loss(error)
        best, error = _step(best, error, errors, _directions(graph, best, kinds, guidance))
        if config.shift:
            best, error = _move(graph, best, error, errors, config.shift)
        if before - log_loss(error) < GAIN:
            return
        yield after(number, best, error)


def _execution(graph: BlockGraph, reuse: np.ndarray) -> Execution:
    """Return what runs under gates alone, which hold."""
    return graph.execute(Schedule(graph.sites, reuse))


Errors = Callable[[Sequence[_Trial]], torch.Tensor]


def _better(
    tried: Sequence[_Trial], errors: torch.Tensor, best: _Trial, error: torch.Tensor
) -> tuple[_Trial, torch.Tensor]:
    """Return the best of the tried candidates with its error, or the one before where none is better."""
    losses = [log_loss(each) for each in errors]
    index = int(np.argmin(np.nan_to_num(losses, nan=np.inf)))
    return (tried[index], errors[index]) if losses[index] < log_loss(error) else (best, error)


def _step(
    trial: _Trial, error: torch.Tensor, errors: Errors, directions: Sequence[np.ndarray]
) -> tuple[_Trial, torch.Tensor]:
    """Return the candidate after a Gauss-Newton step of the changes in these directions, and its error."""
    if not directions:
        raise DipgoError("this schedule reuses nothing, so there is nothing to learn")
    nudged = [replace(trial, changes=trial.changes + NUDGE * direction) for direction in directions]
    slopes = (errors(nudged) - error) / NUDGE
    steps = [np.tensordot(step, np.stack(directions), 1) for step in damped_steps(error, slopes)]
    tried = [replace(trial, changes=trial.changes + step) for step in steps]
    return _better(tried, errors(tried), trial, error)


def _directions(graph: BlockGraph, trial: _Trial, kinds: Sequence[str], guidance: float) -> list[np.ndarray]:
    """Return the directions in which the changes may go: one for each group of gaps in which sites of a kind are
    reused, each value that is remembered in it, and each guidance branch. `kinds` has the kind of each site."""
    execution = _execution(graph, trial.reuse)
    groups, values = trial.groups(execution.computed), np.cumsum(execution.computed, axis=0)
    remembered = np.zeros(trial.changes.shape[:2], dtype=int)
    calls, sites = np.nonzero(execution.reused)
    np.maximum.at(remembered, (groups[calls, sites], sites), values[calls, sites])
    found: dict[tuple[int, str, int, int], np.ndarray] = {}
    for group, site, value in np.ndindex(trial.changes.shape[:3]):
        if value < remembered[group, site]:
            for number, parts in enumerate(_parts(guidance)):
                direction = found.setdefault((group, kinds[site], value, number), np.zeros_like(trial.changes))
                direction[group, site, value] = parts
    return list(found.values())


def _parts(guidance: float) -> list[tuple[float, ...]]:
    """Return changes of the branches' coefficients: one changes the guided prediction itself, the other what guidance
    amplifies, the conditional prediction less the unconditional one. Changes of one branch alone would be too much
    alike."""
    return [(1, 1), (1 / (guidance - 1), 1 / guidance)] if guidance > 1 else [(1,)]


def _move(
    graph: BlockGraph, trial: _Trial, error: torch.Tensor, errors: Errors, shift: int
) -> tuple[_Trial, torch.Tensor]:
    """Return the best candidate among single moves of calls and the best few of them made together, and its error."""
    single = {tuple(move): moved for move in _moves(trial, shift) if (moved := _moved(graph, trial, move))}
    if not single:
        return trial, error
    losses = [log_loss(each) for each in errors(list(single.values()))]
    chosen, tried = np.zeros(len(next(iter(single))), dtype=int), []
    for loss, move in sorted(zip(losses, single, strict=True)):
        apart = not np.any(chosen * move)
        moved = _moved(graph, trial, chosen + move)
        if loss < log_loss(error) and apart and moved and len(tried) < MOVES:
            chosen = chosen + move
            tried.append(moved)
    return _better(tried, errors(tried), trial, error) if tried else (trial, error)


def _moves(trial: _Trial, shift: int) -> Iterator[np.ndarray]:
    """Yield moves: by how much each computed call goes. All calls of one group go together, and call 0 stays."""
    count = len(_computing(trial.reuse))
    groups = np.arange(count) * len(trial.changes) // count
    for group in np.unique(groups[1:]):
        for by in (*range(-shift, 0), *range(1, shift + 1)):
            yield np.where((groups == group) & (np.arange(count) > 0), by, 0)


def _computing(reuse: np.ndarray) -> np.ndarray:
    return np.flatnonzero(~reuse.all(axis=1))


def _moved(graph: BlockGraph, trial: _Trial, move: np.ndarray) -> _Trial | None:
    """Return the candidate after a move of its calls. None where calls would pass each other, or a site would be
    computed more or less often, the cascade included."""
    old = _computing(trial.reuse)
    new = old + move
    if new[-1] >= len(trial.reuse) or (np.diff(new) < 1).any():
        return None
    reuse = np.ones_like(trial.reuse)
    reuse[new] = trial.reuse[old]
    one, other = (_execution(graph, gates).computed.sum(axis=0) for gates in (trial.reuse, reuse))
    return replace(trial, reuse=reuse) if (one == other).all() else None
