"""Seconds of sampler runs at batch 1, measured in turn so that a machine's drift falls on all rows alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
    """Sums the seconds between its starts and stops; on a GPU by events, so that nothing waits between calls."""

    def __init__(self, device: torch.device) -> None:
        self.cuda, self.spans, self.since = device.type == "cuda", [], None

    def start(self, *call: Any) -> None:
        self.since = self._now()

    def stop(self, *call: Any) -> None:
        self.spans.append((self.since, self._now()))

    @contextmanager
    def on(self, module: torch.nn.Module) -> Iterator[None]:
        """Times every call of a module."""
        handles = [module.register_forward_pre_hook(self.start), module.register_forward_hook(self.stop)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

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
    denoiser, whole = Stopwatch(model.device), Stopwatch(model.device)
    whole.start()
    conditioning = model.condition([timed.caption], timed.guidance)
    with gated(model.denoiser, plan.costs.graph, plan.schedule), denoiser.on(model.denoiser):
        latents = rollout(
            model.denoiser, plan.sampler, noise, conditioning, model.branch_guidance(timed.guidance), seeds
        )
    model.decode(latents)
    whole.stop()
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
