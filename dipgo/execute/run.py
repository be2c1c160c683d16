"""Tells which call of its sampler run a gated denoiser is in. No pipeline says so, but every call has a timestep."""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from dipgo.errors import DipgoError, PartialTrajectory
from dipgo.execute.values import snapshot

TIMESTEPS = ("timestep", "timesteps", "t", "time", "time_step", "timestep_ratio", "sigma", "sigmas", "noise_labels")
"""What the models of diffusers and of papers call their timestep."""
ROUNDING = 1e-5  # relative; neighbouring timesteps differ by more, and one timestep in two precisions by less
APART = "if the pipeline calls the denoiser once for each guidance branch, give gated(..., calls_per_step=2)"


class Run:
    """Counts the calls of sampler runs, finds where one begins, and refuses a call that does not fit.

    All runs in a context are at the same timesteps. Those are given, or learned from the first run, in which they must
    go one way (a timestep may come again at once). A call at the first timestep begins a new run, also where the last
    one was broken off. Any other call must bring the timestep that comes next.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        sites: Sequence[str],
        calls: int,
        branches: int = 1,
        timesteps: Iterable[float] | None = None,
    ) -> None:
        self.denoiser, self.sites, self.calls, self.branches = type(denoiser).__name__, sites, calls, branches
        self.entered = 0  # calls of this run so far, each branch counted
        self.given = timesteps is not None
        self.timesteps = [float(timestep) for timestep in timesteps] if self.given else []  # as far as they are known
        self.clock = Clock()
        self.parameters = tuple(inspect.signature(denoiser.forward).parameters)
        self.thread = threading.current_thread()
        self.inside: int | None = None  # the thread that is inside of a call
        self.reached: set[int] = set()  # the sites that were called in this call
        self.shapes: list[torch.Size] = []  # of the sample
        self.first: list[torch.Tensor] = []  # the first call's sample, until the second call has come

    @property
    def call(self) -> int:
        """The number of the call that comes next, or that is under way."""
        return self.entered // self.branches

    def begin(self) -> None:
        """Forget the last run; the next call is the first one of another."""
        self.entered, self.shapes, self.first = 0, [], []

    def reshape(self) -> None:
        """The sample has another shape than in the call before."""

    def advance(self) -> None:
        """A call is through; after the last one the next run begins."""
        self.entered += 1
        if self.entered == self.calls * self.branches:
            self.begin()

    def abandon(self) -> None:
        """A call failed or was interrupted. The next run may come at other timesteps, unless they were given."""
        self.begin()
        if not self.given:
            self.timesteps = []

    def arrive(self, args: tuple, kwargs: Mapping[str, Any]) -> torch.Tensor:
        """Find the place of a call with these arguments, and return its sample. Raises `DipgoError` if it has none."""
        inputs = {**dict(zip(self.parameters, args, strict=False)), **kwargs}
        timestep = next((inputs[name] for name in TIMESTEPS if inputs.get(name) is not None), None)
        if timestep is None:
            raise DipgoError(
                f"{self.denoiser} was called without a timestep, which tells where in its run it is; "
                f"looked for an argument named {', '.join(TIMESTEPS)}"
            )
        first = inputs.get(self.parameters[0], list(inputs.values()))
        sample = [leaf for leaf in tree_leaves(first) if isinstance(leaf, torch.Tensor)]
        self._place(self.clock.read(timestep), sample)
        shapes = [tensor.shape for tensor in sample]
        if self.entered == 0:
            self.begin()
            self.first = snapshot(sample)  # the caller may write into its own before the next call
        elif shapes != self.shapes:
            self.reshape()
        self.shapes = shapes
        return sample[0]

    def _place(self, timestep: float, sample: list[torch.Tensor]) -> None:
        """Take a call at this timestep as the next one of the run, or else as the first one of a new run."""
        known, call = self.timesteps, self.call
        if call < len(known) and _same(timestep, known[call]):
            return
        if call == len(known) and (not known or _goes_on(known, timestep)):
            if call == 1 and timestep == known[0] and self._came_first(sample):
                raise DipgoError(f"the denoiser was called twice with one sample at its first timestep; {APART}")
            known.append(timestep)
        elif self.entered and _same(timestep, known[0]):
            self.begin()
        else:
            raise self._misfit(timestep)

    def _came_first(self, sample: list[torch.Tensor]) -> bool:
        """Whether this sample was the first call's, too. No sampler gives it again."""
        if any(tensor.is_meta for tensor in sample):  # they hold no values to compare
            return False
        return len(sample) == len(self.first) and all(map(torch.equal, sample, self.first))

    def _misfit(self, timestep: float) -> PartialTrajectory:
        call, known = self.call, self.timesteps
        wanted = f"{known[call]:g}" if call < len(known) else f"a timestep beyond {known[-1]:g}"
        says = "the schedule says" if self.given else "the calls before it say"
        again = 0 < call <= len(known) and _same(timestep, known[call - 1])
        return PartialTrajectory(
            f"call {call + 1} of {self.calls} came at timestep {timestep:g}, where {says} {wanted}; "
            + (APART if again else "is the schedule for another scheduler or step count? Enter a context for each")
        )

    @contextmanager
    def under_way(self, computed: Iterable[int] = ()) -> Iterator[None]:
        """In here sites may be called, each once. Raises `DipgoError` where one of those in `computed` was not."""
        before = self.inside, self.reached
        self.inside, self.reached = threading.get_ident(), set()
        try:
            yield
            missing = sorted(set(computed) - self.reached)
            if missing:
                raise DipgoError(
                    f"{self.sites[missing[0]]} is computed in call {self.call + 1}, but this {self.denoiser} did not "
                    "call it: it is not as it was when its graph was traced; trace it again"
                )
        finally:
            self.inside, self.reached = before

    def reach(self, index: int) -> None:
        """A site is called. Raises `DipgoError` outside of a call, in another thread, or the second time in a call."""
        if self.inside != threading.get_ident():
            raise DipgoError(
                f"{self.sites[index]} was called outside of a call of its gated {self.denoiser}; leave gated(...) first"
            )
        if index in self.reached:
            raise DipgoError(f"{self.sites[index]} runs 2 times in a call; a site runs once: take the module around it")
        self.reached.add(index)

    def leave(self) -> None:
        """Raise `PartialTrajectory` where the context is left in the middle of a run."""
        if self.entered:
            raise PartialTrajectory(
                f"the denoiser was called {self.entered} times of {self.calls * self.branches} in its last run; "
                "is the schedule for another scheduler or step count?"
            )


class CallHook:
    """The hook on a denoiser: it finds the call's place in the run, and lets a subclass `make` the output."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def __call__(self, module: nn.Module, forward: Any, /, *args: Any, **kwargs: Any) -> Any:
        run, thread = self.run, threading.current_thread()
        if thread is not run.thread:
            raise DipgoError(
                f"thread {thread.name!r} calls a {run.denoiser} that thread {run.thread.name!r} has gated; "
                "enter gated(...) in the thread that draws, and give each thread a copy.deepcopy of the denoiser"
            )
        try:
            sample = run.arrive(args, kwargs)
            output = self.make(sample, forward, args, kwargs)
        except BaseException:  # an interrupt, too
            run.abandon()
            raise
        run.advance()
        return output


class Clock:
    """Reads timesteps, and has the device and its host wait for each other as seldom as can be.

    Pipelines pass views of one tensor that holds all timesteps of a run. So a view's whole memory is read at once, and
    again only where it is another one or was written into.
    """

    def __init__(self) -> None:
        self.source: torch.Tensor | None = None  # kept, so that no other tensor gets its address
        self.version: int | None = None
        self.host: torch.Tensor | None = None

    def read(self, timestep: Any) -> float:
        """Return the timestep of a call, or NaN where it has no value, as on torch's device "meta".

        Rows and tokens of one call may differ in it (an image that a video begins with is at 0); the largest counts.
        """
        if not isinstance(timestep, torch.Tensor) or timestep.device.type == "cpu":
            return float(torch.as_tensor(timestep).max())
        if timestep.device.type == "meta":
            return math.nan
        version = None if timestep.is_inference() else timestep._version
        memory = timestep.untyped_storage()
        seen = self.source is not None and memory.data_ptr() == self.source.untyped_storage().data_ptr()
        if not seen or version is None or version != self.version or timestep.dtype != self.source.dtype:
            self.source, self.version = timestep.detach(), version
            size = memory.nbytes() // timestep.element_size()
            self.host = self.source.as_strided((size,), (1,), 0).cpu()
        return float(self.host.as_strided(timestep.size(), timestep.stride(), timestep.storage_offset()).max())


def _same(one: float, other: float) -> bool:
    """Whether two timesteps are one; a timestep without a value is like any other."""
    return math.isnan(one) or math.isnan(other) or math.isclose(one, other, rel_tol=ROUNDING)


def _goes_on(known: list[float], timestep: float) -> bool:
    """Whether a timestep repeats the last one, or lies beyond it in the run's direction, up or down."""
    direction, step = known[-1] - known[0], timestep - known[-1]
    return _same(timestep, known[-1]) or direction * step > 0 or direction == 0
