"""Seconds of sampler runs at batch 1, measured in turn so that a machine's drift falls on all rows alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from tqdm import tqdm

from baselines import Plan
from benchmarks.models import Model
from dipgo import gated, initial_noise, picture_seeds, rollout

ROUNDS = 5
WARM_UP_ROUNDS = 1


class Stopwatch:
    """Sums the seconds spent in a callable; on a GPU by events, so that nothing waits between calls."""

    def __init__(self, timed: Any, device: torch.device) -> None:
        self.timed, self.cuda, self.spans = timed, device.type == "cuda", []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        start = self._now()
        result = self.timed(*args, **kwargs)
        self.spans.append((start, self._now()))
        return result

    def _now(self) -> Any:
        if not self.cuda:
            return perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self) -> float:
        """The sum so far; waits for the GPU."""
        if not self.cuda:
            return sum(end - start for start, end in self.spans)
        torch.cuda.synchronize()
        return sum(start.elapsed_time(end) for start, end in self.spans) / 1000


@dataclass(frozen=True)
class Timed:
    """What is timed: one picture of a caption by a model under a plan."""

    model: Model
    plan: Plan
    caption: str
    guidance: float


@torch.no_grad()
def time_once(timed: Timed) -> dict[str, float]:
    """Seconds of one picture: all denoiser calls alone, and from text to image."""
    model, plan, seeds = timed.model, timed.plan, picture_seeds(0, [0])
    noise = initial_noise(seeds, model.latent_shape).to(model.device)
    denoiser, scale = Stopwatch(model.denoiser, model.device), model.branch_guidance(timed.guidance)

    def text_to_image() -> None:
        conditioning = model.condition([timed.caption], timed.guidance)
        with gated(model.denoiser, plan.costs.graph, plan.schedule):
            model.decode(rollout(denoiser, plan.sampler, noise, conditioning, scale, seeds))

    whole = Stopwatch(text_to_image, model.device)
    whole()
    return {"denoiser": denoiser.seconds(), "end_to_end": whole.seconds()}


def measure(rows: Mapping[str, Timed]) -> dict[str, list[dict[str, float]]]:
    """For each row, the seconds of `ROUNDS` runs; every round runs all rows once, after a warm-up round."""
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in rows}
    turns = [(number, name) for number in range(-WARM_UP_ROUNDS, ROUNDS) for name in rows]
    for number, name in tqdm(turns, desc="latency, batch 1", unit="run"):
        once = time_once(rows[name])
        if number >= 0:
            seconds[name].append(once)
    return seconds
