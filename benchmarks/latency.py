"""Seconds of sampler runs at batch 1, measured in turn so that a machine's drift falls on all rows alike."""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter
from typing import Any

import torch
from tqdm import tqdm

from baselines import Plan
from benchmarks.models import Model
from dipgo import gated, initial_noise, rollout

ROUNDS = 5
WARM_UP_ROUNDS = 1
CAPTION = "sunflower, fluent"


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


@torch.no_grad()
def time_once(model: Model, plan: Plan, guidance: float) -> dict[str, float]:
    """Seconds of one picture: all denoiser calls alone, and from text to image."""
    noise = initial_noise(0, [0], model.latent_shape).to(model.device)
    denoiser = Stopwatch(model.denoiser, model.device)

    def text_to_image() -> None:
        conditioning = model.condition([CAPTION], guidance)
        with gated(model.denoiser, plan.costs.graph, plan.schedule):
            model.decode(rollout(denoiser, plan.sampler, noise, conditioning, guidance))

    whole = Stopwatch(text_to_image, model.device)
    whole()
    return {"denoiser": denoiser.seconds(), "end_to_end": whole.seconds()}


def measure(model: Model, plans: Mapping[str, Plan], guidance: float) -> dict[str, list[dict[str, float]]]:
    """For each plan, the seconds of `ROUNDS` runs; every round runs all plans once, after a warm-up round."""
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in plans}
    turns = [(number, name) for number in range(-WARM_UP_ROUNDS, ROUNDS) for name in plans]
    for number, name in tqdm(turns, desc="latency, batch 1", unit="run"):
        once = time_once(model, plans[name], guidance)
        if number >= 0:
            seconds[name].append(once)
    return seconds
