"""Many schedules side by side in one batch, for searches: what two of them have in common so far runs once.

`gated` runs one schedule for a whole batch. Here every row of the batch follows one of several schedules. At each site
the rows that compute it are gathered into one forward. Of the schedules that have computed the same sites in every
call so far, only the first runs: their leader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from dipgo.errors import DipgoError
from dipgo.execute.hooks import hooked, reentrant
from dipgo.execute.run import ROUNDING, CallHook, Run
from dipgo.execute.trajectory import OUTPUT
from dipgo.execute.values import add, check_branches, each, residuals, snapshot, subtract
from dipgo.graph import BlockGraph, Site, Stream
from dipgo.sampling import Diffusion, Inputs, rollout
from dipgo.schedule import Schedule


def leaders(computed: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """Return int [schedules, calls]: the first schedule whose run is equal to this one's up to and with that call.

    computed: bool [schedules, calls, sites], the sites that each computes.
    coefficients: float [schedules, calls, sites, ...], how each reuses the others.
    """
    found = np.zeros(computed.shape[:2], dtype=int)
    for call in range(computed.shape[1]):
        first: dict[tuple[int, bytes, bytes], int] = {}
        for schedule, row in enumerate(computed[:, call]):
            before = int(found[schedule, call - 1]) if call else 0
            alike = before, row.tobytes(), coefficients[schedule, call].tobytes()
            found[schedule, call] = first.setdefault(alike, schedule)
    return found


def _coefficients(schedules: Sequence[Schedule]) -> np.ndarray:
    """Return the coefficients of all schedules, float [schedules, calls, sites, K, branches]; holding is a 1."""
    given = [s.reuse[..., None] if s.coefficients is None else s.coefficients for s in schedules]
    given = [values if values.ndim == 4 else values[..., None] for values in given]
    depth, branches = (max(values.shape[axis] for values in given) for axis in (2, 3))
    found = np.zeros((len(given), *given[0].shape[:2], depth, branches), dtype=np.float32)
    for place, values in zip(found, given, strict=True):
        place[:, :, : values.shape[2]] = values
    return found


def _timesteps(schedules: Sequence[Schedule]) -> np.ndarray | None:
    """Return the timesteps that schedules were made for, as far as they say. Raises `DipgoError` where they differ."""
    given = [schedule.timesteps for schedule in schedules if schedule.timesteps is not None]
    for timesteps in given[1:]:
        other = np.flatnonzero(~np.isclose(timesteps, given[0], rtol=ROUNDING))
        if len(other):
            raise DipgoError(
                f"these schedules were made for different samplers: call {other[0] + 1} is at timestep "
                f"{given[0][other[0]]:g} in one and at {timesteps[other[0]]:g} in another; run each by itself"
            )
    return given[0] if given else None


def pick(values: Any, chosen: Sequence[int], count: int, rows: int) -> Any:
    """Return the rows of the `chosen` among `count` schedules, for every tensor in `values` that has `rows` rows."""

    def chosen_rows(value: Any) -> Any:
        batched = isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == rows
        return value.unflatten(0, (-1, count))[:, chosen].flatten(0, 1) if batched else value

    return tree_map(chosen_rows, values)


def _rows(values: Any) -> int:
    """Return the rows of the first tensor in `values`."""
    return len(next(value for value in tree_leaves(values) if isinstance(value, torch.Tensor)))


class _Run(Run):
    """A run of all schedules, the last values of all rows, and the schedules that are running."""

    def __init__(self, denoiser: nn.Module, graph: BlockGraph, schedules: Sequence[Schedule]) -> None:
        super().__init__(denoiser, graph.sites, schedules[0].calls, timesteps=_timesteps(schedules))
        executions = [graph.execute(schedule) for schedule in schedules]
        self.computed = np.stack([execution.computed for execution in executions])
        self.runs = np.stack([execution.entered for execution in executions])
        coefficients = _coefficients(schedules)
        self.leaders = leaders(self.computed, coefficients)
        holding = all(schedule.coefficients is None for schedule in schedules)
        self.coefficients = None if holding else torch.tensor(coefficients)
        self.depth = coefficients.shape[3]
        self.count = len(schedules)
        self.running: list[int] = []
        self.memory: dict[Any, list[Any]] = {}  # the last values of each key, newest first

    def begin(self) -> None:
        super().begin()
        self.memory = {}

    def reshape(self) -> None:
        raise DipgoError("the batch has changed in the middle of a run; schedules run together on one batch only")

    def leading(self) -> list[int]:
        """Return the schedules that enter this call for themselves and for those that they lead."""
        lead = self.leaders[:, self.call] == np.arange(self.count)
        return np.flatnonzero(lead & self.runs[:, self.call]).tolist()

    def keep(self, key: Any, new: Any, running: Sequence[int], depth: int = 1) -> None:
        """Remember new values of the `running` schedules, also for those that they lead, and the `depth` - 1 before."""
        place = {schedule: index for index, schedule in enumerate(running)}
        led = [s for s in range(self.count) if int(self.leaders[s, self.call]) in place]
        source = [place[int(self.leaders[s, self.call])] for s in led]

        def rows(value: torch.Tensor) -> torch.Tensor:
            return value.unflatten(0, (-1, self.count))

        def update(last: torch.Tensor, fresh: torch.Tensor) -> torch.Tensor:
            rows(last)[:, led] = fresh.unflatten(0, (-1, len(running)))[:, source]
            return last

        def shift(older: torch.Tensor, newer: torch.Tensor) -> torch.Tensor:
            rows(older)[:, led] = rows(newer)[:, led]
            return older

        if key in self.memory:
            past = self.memory[key]
            for k in reversed(range(1, depth)):
                each(shift, past[k], past[k - 1])
            each(update, past[0], new)
        else:  # call 0, which all schedules compute in full
            self.memory[key] = [
                each(lambda v: v.unflatten(0, (-1, len(running)))[:, source].flatten(0, 1), new) for _ in range(depth)
            ]

    def last(self, key: Any, schedules: Sequence[int]) -> list[Any]:
        """Return copies of the remembered values of some schedules, newest first."""
        past = self.memory[key]
        return [pick(value, schedules, self.count, _rows(value)) for value in past]

    def reused(self, key: Any, index: int, schedules: Sequence[int]) -> Any:
        """Return what the site of that index and key gives where these schedules reuse it."""
        past = self.last(key, schedules)
        if self.coefficients is None:
            return past[0]
        given = self.coefficients[list(schedules), self.call, index].movedim(2, 0)  # [branches, schedules, K]

        def combination(*values: torch.Tensor) -> torch.Tensor:
            pictures = len(values[0]) // given[..., 0].numel()  # each has a row for each schedule
            weights = given.to(values[0]).repeat(1, pictures, 1).flatten(0, 1)
            return sum(w.view(-1, *[1] * (v.ndim - 1)) * v for w, v in zip(weights.unbind(1), values, strict=True))

        return each(combination, *past)


class _CallHook(CallHook):
    """On the denoiser: only leaders that compute something enter."""

    def make(self, sample: torch.Tensor, forward: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        run = self.run
        if len(sample) % run.count:
            raise DipgoError(f"a batch of {len(sample)} rows does not hold each picture {run.count} times")
        if run.entered == 0 and run.coefficients is not None and run.coefficients.shape[4] > 1:
            check_branches(sample, run.coefficients.shape[4])
        run.running = run.leading()
        if run.running:
            args, kwargs = pick((args, kwargs), run.running, run.count, len(sample))
            with run.under_way():
                run.keep(OUTPUT, forward(*args, **kwargs), run.running)
        return run.last(OUTPUT, range(run.count))[0]


class _SiteHook:
    """On a gated module: rows that compute it run, the others take their last value."""

    def __init__(self, run: _Run, index: int, streams: Sequence[Stream]) -> None:
        self.run, self.index, self.streams = run, index, streams
        self.site = Site.parse(run.sites[index])

    def __call__(self, module: nn.Module, forward: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        run = self.run
        run.reach(self.index)
        # Where the call itself is the site, its hook is inside of the call's: the rows are those of the call.
        now = run.computed[run.running, run.call, self.index]
        rows = _rows((args, kwargs))
        parts = {}
        for computes in (True, False):
            places = np.flatnonzero(now == computes).tolist()
            if places:
                inputs = pick((args, kwargs), places, len(now), rows) if len(places) < len(now) else (args, kwargs)
                schedules = [run.running[place] for place in places]
                if computes:
                    parts[computes] = places, self._compute(module, forward, schedules, *inputs)
                else:
                    parts[computes] = places, self._reuse(module, schedules, *inputs)
        if len(parts) == 1:
            return next(iter(parts.values()))[1]
        order = np.argsort(parts[True][0] + parts[False][0]).tolist()

        def merge(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            pieces = [v.unflatten(0, (-1, len(p))) for v, p in ((one, parts[True][0]), (other, parts[False][0]))]
            return torch.cat(pieces, dim=1)[:, order].flatten(0, 1)

        return each(merge, parts[True][1], parts[False][1])

    def _compute(
        self, module: nn.Module, forward: Callable[..., Any], schedules: list[int], args: tuple, kwargs: dict[str, Any]
    ) -> Any:
        streams = snapshot(residuals(module, self.streams, args, kwargs))  # before the module changes them
        new = forward(*args, **kwargs)
        value = subtract(new, streams) if self.site.delta else new
        self.run.keep(self.site, value, schedules, self.run.depth)
        return new

    def _reuse(self, module: nn.Module, schedules: list[int], args: tuple, kwargs: dict[str, Any]) -> Any:
        value = self.run.reused(self.site, self.index, schedules)
        return add(value, residuals(module, self.streams, args, kwargs)) if self.site.delta else value


@reentrant
def gated_together(denoiser: nn.Module, graph: BlockGraph, schedules: Sequence[Schedule]) -> Iterator[None]:
    """Apply each of S schedules to its rows of a batch, for full sampler runs inside the context.

    Row r of every batched input follows schedule r % S, and the S rows of one picture start from equal inputs:
    pass `noise.repeat_interleave(S, 0)` and the conditioning likewise. Gives what S runs inside `gated` give, up to
    rounding, without their trace. Without gradients only.

    Raises `DipgoError` for no schedules, schedules of other lengths or timesteps, a denoiser that is gated already, and
    `PartialTrajectory` at a call whose timestep does not continue its run, and on leaving in the middle of a run.
    """
    if not schedules or len({schedule.calls for schedule in schedules}) != 1:
        raise DipgoError("running together takes at least one schedule, and all of one number of calls")
    if torch.is_grad_enabled():
        raise DipgoError("schedules run together without gradients only; enter torch.no_grad() first")
    run = _Run(denoiser, graph, schedules)
    sites = [_SiteHook(run, index, streams) for index, streams in enumerate(graph.streams)]
    with hooked(denoiser, graph, sites, _CallHook(run)):
        yield
    run.leave()


@torch.no_grad()
def rollout_together(
    diffusion: Diffusion, graph: BlockGraph, schedules: Sequence[Schedule], inputs: Inputs
) -> torch.Tensor:
    """Return the final latents [S, n, c, h, w] of S schedules, each run from the same n inputs; see `rollout`.

    Raises `DipgoError` for a schedule that was made for another sampler.
    """
    count = len(schedules)
    for schedule in schedules:
        diffusion.sampler.check(schedule)
    with gated_together(diffusion.denoiser, graph, schedules):
        latents = rollout(diffusion, inputs.repeated(count))
    return latents.unflatten(0, (-1, count)).transpose(0, 1)
