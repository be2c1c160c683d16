"""Seconds of sampler runs at batch 1, measured in turn so that a machine's drift falls on all rows alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from baselines import Plan
from benchmarks.machine.timing import ROUNDS, WARM_UP_ROUNDS, Stopwatch
from benchmarks.models.model import Model
from dipgo import Inputs, initial_noise, picture_seeds, rollout


@dataclass(frozen=True)
class Timed:
    """What is timed: one picture of a caption by a model under a plan."""

    model: Model
    plan: Plan
    caption: str
    guidance: float


@torch.no_grad()
def time_once(timed: Timed) -> dict[str, float]:
    """Return the seconds of one picture: "denoiser" for all denoiser calls alone, "end_to_end" from text to image."""
    model, plan, seeds = timed.model, timed.plan, picture_seeds(0, [0])
    noise = initial_noise(seeds, model.latent_shape).to(model.device)
    denoiser, whole = Stopwatch(model.device), Stopwatch(model.device)
    whole.start()
    conditioning = model.condition([timed.caption], timed.guidance)
    with plan.applied(model.denoiser), denoiser.on(model.denoiser):
        latents = rollout(model.diffusion(plan.sampler, timed.guidance), Inputs(noise, conditioning, seeds))
    model.decode(latents)
    whole.stop()
    return {"denoiser": denoiser.seconds(), "end_to_end": whole.seconds()}


def measure(
    rows: Mapping[str, Timed],
    over: Callable[[], bool] = lambda: False,
    guard: Callable[[str], AbstractContextManager[None]] = lambda name: nullcontext(),
) -> dict[str, list[dict[str, float]]]:
    """Return the seconds of every row's runs. Each round runs all rows once, and one round before warms up.

    rows: what is timed, by name.
    over: tells whether the time is over. No run begins then, so that there are fewer seconds, or none.
    guard: gives the context in which the runs of a row are made, by its name. A context that swallows an error leaves
        the row with fewer seconds than the others.
    """
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in rows}
    turns = [(number, name) for number in range(-WARM_UP_ROUNDS, ROUNDS) for name in rows]
    for number, name in tqdm(turns, desc="latency, batch 1", unit="run"):
        if over():
            break
        with guard(name):
            once = time_once(rows[name])
            if number >= 0:
                seconds[name].append(once)
    return seconds


LATENCY_METRICS = ("denoiser", "end_to_end")


def latency_cells(rounds: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, dict[str, Any]]:
    """Return the cells of the median seconds and speedups, with quartiles. A speedup pairs the two runs of one round.

    rounds: the seconds of all rounds, as `time_once` gives them, of the "run" and of the "dense" run.
    """
    cells = {}
    for name in LATENCY_METRICS:
        seconds = [once[name] for once in rounds["run"]]
        pairs = zip(rounds["dense"], seconds, strict=True)
        cells[f"seconds_{name}"] = _spread(seconds)
        cells[f"speedup_{name}"] = _spread([dense[name] / own for dense, own in pairs])
    return cells


def _spread(values: Sequence[float]) -> dict[str, Any]:
    low, high = np.quantile(values, [0.25, 0.75])
    return {"value": median(values), "n": len(values), "low": float(low), "high": float(high)}
