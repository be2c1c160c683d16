"""Time on a device: moments, spans between them, and calls that take turns, so that a machine's drift falls on all."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch

from benchmarks.machine.provenance import memory_meter

ROUNDS = 5
WARM_UP_ROUNDS = 1
CPU_CLOCKS = Path("/proc/cpuinfo")


class _Event:
    """A moment in a GPU's queue. Less an earlier one it gives seconds, for which it waits until the GPU is there."""

    def __init__(self) -> None:
        self.event = torch.cuda.Event(enable_timing=True)
        self.event.record()

    def __sub__(self, earlier: _Event) -> float:
        self.event.synchronize()
        return earlier.event.elapsed_time(self.event) / 1000


def now(device: torch.device) -> Any:
    """This moment, by an event on a GPU, where nothing waits for it; two of them differ by seconds."""
    return _Event() if device.type == "cuda" else perf_counter()


class Stopwatch:
    """Sums the seconds between its starts and stops; on a GPU nothing waits before the sum is asked for."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.spans, self.since = device, [], None

    def start(self, *call: Any) -> None:
        self.since = now(self.device)

    def stop(self, *call: Any) -> None:
        self.spans.append((self.since, now(self.device)))

    @contextmanager
    def on(self, module: torch.nn.Module) -> Iterator[None]:
        """Times every call of a module."""
        handles = [module.register_forward_pre_hook(self.start), module.register_forward_hook(self.stop)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def seconds(self) -> float:
        """The sum so far; waits for the GPU."""
        return sum(end - start for start, end in self.spans)


def seconds_of(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call; waits for the GPU when it is through."""
    start = now(device)
    call()
    return now(device) - start


def first_call(call: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """Seconds of a call that has not been made before, with the allocations and compilations that only the first one
    has, and the most memory meanwhile in bytes, allocated on a GPU and resident on a CPU: all of the process's, and
    what of it came with the call."""
    _give_back_freed()
    with memory_meter() as peak:
        before, seconds = peak(), seconds_of(call, device)
        most = peak()
    return {"first_call_seconds": seconds, "peak_memory_bytes": most, "added_memory_bytes": most - before}


def _give_back_freed() -> None:
    """Freed memory goes back to the system where the C library can do that; a call would live in it unseen."""
    gc.collect()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def compared(against: Sequence[float], own: Sequence[float]) -> dict[str, float]:
    """How many times as fast the second calls were as the first, each pair of one round: median and quartiles."""
    pairs = [other / mine for other, mine in zip(against, own, strict=True)]
    low, high = np.quantile(pairs, [0.25, 0.75])
    return {
        "against_seconds": median(against),
        "speedup": median(pairs),
        "speedup_low": float(low),
        "speedup_high": float(high),
    }


def clock_mhz(device: torch.device) -> float | None:
    """The clock rate at this moment; None where it cannot be read."""
    if device.type == "cuda":
        try:
            return float(torch.cuda.clock_rate(device))
        except (ModuleNotFoundError, RuntimeError):  # it needs NVIDIA's management library
            return None
    try:
        lines = CPU_CLOCKS.read_text().splitlines()
    except OSError:
        return None
    clocks = [float(line.split(":")[1]) for line in lines if line.startswith("cpu MHz")]
    return max(clocks, default=None)
