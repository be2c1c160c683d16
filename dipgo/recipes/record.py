"""Dense runs of a pipeline, recorded: the timestep, the batch and the output of every call of its denoiser."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from dipgo.errors import DipgoError
from dipgo.execute.hooks import around
from dipgo.families import denoiser_of
from dipgo.recipes.accelerate import Reader, branches_of, grid_of
from dipgo.recipes.recipe import RunForm

POSITIONS = 16_384  # of an output that are kept of each picture
NUDGE = 1e-3


@dataclass(eq=False)
class Recorded:
    """One run, of one picture."""

    timesteps: np.ndarray
    """Float [calls]."""
    outputs: np.ndarray
    """Float32 [calls, branches, positions]: what the denoiser gave, at some fixed positions."""
    guidance: np.ndarray
    """Float [calls, branches]: the part of each branch in the prediction that the scheduler got."""
    moved: np.ndarray
    """Float [calls]: how far the last latents move with a call's prediction, while all other predictions stay."""
    grid: tuple[float, ...]
    calls_per_step: int
    latent: tuple[int, ...]
    picture: np.ndarray
    """Float [...]: what the pipeline gave, in [0, 1] where it is a picture."""

    @property
    def branches(self) -> int:
        return self.outputs.shape[1]

    @property
    def form(self) -> RunForm:
        """What the calls of such a run look like."""
        return RunForm(self.branches, self.calls_per_step, self.grid, self.latent)


def draw(pipe: Any, picture: Any, seed: int, arguments: Mapping[str, Any]) -> np.ndarray:
    """Return what a pipeline draws for one picture, as an array.

    picture: its prompt, or a mapping of the arguments that are this picture's own.
    seed: decides its noise.
    arguments: the arguments of all pictures.
    """
    given = {"generator": torch.Generator().manual_seed(seed), **arguments}
    with torch.random.fork_rng(range(torch.cuda.device_count())), torch.no_grad():
        torch.manual_seed(seed)
        return as_array(pipe(**picture, **given) if isinstance(picture, Mapping) else pipe(picture, **given))


def as_array(output: Any) -> np.ndarray:
    """Return a pipeline's pictures, frames or sounds as floats, 8-bit ones in [0, 1]."""
    first = output if isinstance(output, (torch.Tensor, np.ndarray)) else output[0]
    if isinstance(first, torch.Tensor):
        return first.detach().float().cpu().numpy()
    if isinstance(first, (list, tuple)):
        return np.stack([as_array([part]) for part in first])
    values = np.asarray(first)
    return values.astype(np.float32) / (255 if values.dtype == np.uint8 else 1)


def psnr(picture: np.ndarray, dense: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio of one picture to its dense run in dB, at most 100."""
    peak = 1.0 if dense.min() >= 0 and dense.max() <= 1 else float(np.ptp(dense))
    error = float(np.mean((picture.astype(np.float64) - dense) ** 2))
    return min(100.0, 10 * np.log10(max(peak, 1e-12) ** 2 / error)) if error else 100.0


def record(pipe: Any, component: str, picture: Any, seed: int, arguments: Mapping[str, Any]) -> Recorded:
    """Draw one picture densely and return what its calls were.

    Raises `DipgoError` where the pipeline does not call its denoiser, changes the batch midway, or calls it unevenly.
    """
    watch = _Watch(pipe, component)
    with around(watch.denoiser, watch), watch.steps():
        drawn = draw(pipe, picture, seed, arguments)
    return watch.recorded(drawn)


class _Watch:
    """The hook that records."""

    def __init__(self, pipe: Any, component: str) -> None:
        self.pipe, self.component = pipe, component
        self.denoiser = denoiser_of(pipe, component)
        self.read = Reader(self.denoiser)
        self.timesteps: list[float] = []
        self.samples: list[torch.Tensor] = []
        self.outputs: list[torch.Tensor] = []
        self.predictions: list[torch.Tensor] = []
        self.stepped: list[tuple[Any, dict[str, Any]]] = []
        self.scheduler: Any = None
        self.grid: tuple[float, ...] = ()
        self.branches = 1

    def __call__(self, module: nn.Module, forward: Any, /, *args: Any, **kwargs: Any) -> Any:
        timestep, sample = self.read(args, kwargs)
        if not self.timesteps:
            self.grid, self.branches = grid_of(self.pipe), branches_of(self.pipe, sample)
        self.timesteps.append(timestep)
        self.samples.append(sample.detach().clone() if len(self.samples) < 2 else sample.detach()[:0])
        output = forward(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]
        self.outputs.append(tensors[0].detach().float().cpu())
        return output

    @contextmanager
    def steps(self) -> Any:
        """In here the scheduler's steps are recorded, if the pipeline has one."""
        scheduler = getattr(self.pipe, "scheduler", None)
        stock = getattr(scheduler, "step", None)
        if stock is None:
            yield
            return

        form = inspect.signature(stock)
        names = list(form.parameters)[:3]  # the prediction, the timestep and the sample, whatever they are called

        @functools.wraps(stock)
        def step(*args: Any, **kwargs: Any) -> Any:
            if self.scheduler is None:
                bare = {name: value for name, value in vars(scheduler).items() if name != "step"}
                self.scheduler = copy.copy(scheduler)
                self.scheduler.__dict__ = copy.deepcopy(bare)
            given = dict(form.bind(*args, **kwargs).arguments)
            prediction, timestep, _ = (given.pop(name, None) for name in names)
            self.predictions.append(prediction.detach().float().cpu())
            self.stepped.append((timestep, given.pop("kwargs", {}) | given))
            return stock(*args, **kwargs)

        scheduler.step = step
        try:
            yield
        finally:
            del scheduler.step

    def recorded(self, picture: np.ndarray) -> Recorded:
        per_step = self._calls_per_step()
        kind = type(self.denoiser).__name__
        if len(self.outputs) < 3 * per_step or len(self.outputs) % per_step:
            raise DipgoError(f"the pipeline called its {kind} {len(self.outputs)} times; draw with at least 3 steps")
        if len({(len(output), *output.shape[1:]) for output in self.outputs}) > 1:
            raise DipgoError(
                f"the batch of this {kind} changes midway (by guidance that ends?), so that no call can stand in for "
                "another; draw with one batch throughout"
            )
        rows = len(self.outputs[0])
        if per_step == 1 and rows != self.branches:
            raise DipgoError(f"a call holds {rows} rows; give one picture at a time to learn from")
        calls = len(self.outputs) // per_step
        branches = per_step * self.branches
        outputs = torch.stack(self.outputs).reshape(calls, branches, 1, *self.outputs[0].shape[1:])
        times = np.array(self.timesteps).reshape(calls, per_step)
        if np.ptp(times, axis=1).any():
            raise DipgoError(f"the calls of one step are at different timesteps, {times[0].tolist()} in the first")
        predictions = self.predictions if len(self.predictions) == calls else []
        outputs, guidance = _guided(outputs, predictions)
        return Recorded(
            timesteps=times[:, 0],
            outputs=outputs[..., _positions(outputs.shape[-1])].numpy(),
            guidance=guidance,
            moved=self._moved(calls),
            grid=self.grid,
            calls_per_step=per_step,
            latent=tuple(self.samples[0].shape[1:]),
            picture=picture,
        )

    def _calls_per_step(self) -> int:
        """Return 2 where the guidance branches come one after the other: two calls of one sample at one timestep."""
        if len(self.samples) < 2:
            return 1
        one, other = self.samples[:2]
        return 2 if self.timesteps[0] == self.timesteps[1] and torch.equal(one, other) else 1

    def _moved(self, calls: int) -> np.ndarray:
        """Return how the last latents answer to each prediction: a copy of the scheduler steps through small numbers,
        one row for each call that is nudged. Where it cannot, all calls count alike."""
        alike = np.ones(calls)
        if len(self.stepped) != calls:
            return alike
        latents = torch.zeros(calls + 1, *[1] * (self.predictions[0].ndim - 1))
        try:
            for call, (timestep, kwargs) in enumerate(self.stepped):
                prediction = torch.zeros_like(latents)
                prediction[call] = NUDGE
                if kwargs.get("generator") is not None:
                    seeded = [torch.Generator().manual_seed(call) for _ in latents]
                    kwargs = {**kwargs, "generator": seeded}
                stepped = self.scheduler.step(prediction, timestep, latents, **{**kwargs, "return_dict": False})
                latents = stepped[0]
        except Exception:  # a scheduler of somebody's own may want what it likes
            return alike
        moved = ((latents[:-1] - latents[-1]).flatten() / NUDGE).double().numpy()
        return moved if np.isfinite(moved).all() and moved.any() else alike


def _guided(outputs: torch.Tensor, predictions: Sequence[torch.Tensor]) -> tuple[torch.Tensor, np.ndarray]:
    """Return the outputs [calls, branches, numbers] without what the scheduler does not get (a variance), and the part
    of each branch in its prediction, [calls, branches]: fitted, since pipelines guide in many ways."""
    calls, branches = outputs.shape[:2]
    if predictions and predictions[0].ndim == outputs.ndim - 2 and predictions[0].ndim > 1:
        outputs = outputs[:, :, :, : predictions[0].shape[1]]
    flat = outputs.flatten(2)
    found = np.full((calls, branches), 1.0 / branches)
    for call, prediction in enumerate(predictions):
        if prediction.numel() == flat.shape[2]:
            fitted = np.linalg.lstsq(flat[call].double().numpy().T, prediction.double().flatten().numpy(), rcond=None)
            found[call] = fitted[0]
    return flat, found


def _positions(count: int) -> np.ndarray:
    return np.sort(np.random.default_rng(0).permutation(count)[:POSITIONS])
