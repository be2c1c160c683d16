"""Where numbers come from: code, packages, weights, machine and command."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks import ROOT

PACKAGES = ("torch", "diffusers", "transformers", "open_clip_torch", "clean-fid", "fvcore", "numpy", "timm")


def provenance(weights: Mapping[str, str], workers: int = 1) -> dict[str, Any]:
    """Return what identifies a measurement, as plain JSON values.

    weights: the digest of each model's files, by the name of the model.
    workers: how many processes measured. The peak memory is that of this process, and for each worker beside it as much
        as the largest of them held.
    """
    beside = workers if workers > 1 else 0
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD") or "unknown",
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no", "--", ":!tables/out", ":!tables/records")),
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "weights": dict(weights),
        "workers": workers,
        "peak_memory_bytes": _peak(resource.RUSAGE_SELF) + beside * _peak(resource.RUSAGE_CHILDREN),
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
    }


def _peak(who: int) -> int:
    return resource.getrusage(who).ru_maxrss * 1024


@contextmanager
def memory_meter(interval: float = 0.05) -> Iterator[Callable[[], int]]:
    """Give a function that returns the most memory, in bytes, that was in use inside the context so far.

    On a GPU this is the most memory allocated there. On a CPU it is the resident memory of the process, sampled every
    `interval` seconds where Linux's /proc exists. Elsewhere it is the peak of the process since it began.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        yield torch.cuda.max_memory_allocated
        return
    status = Path("/proc/self/statm")
    if not status.exists():
        yield lambda: _peak(resource.RUSAGE_SELF)
        return
    peak, done = 0, threading.Event()

    def sample() -> int:
        nonlocal peak
        peak = max(peak, int(status.read_text().split()[1]) * resource.getpagesize())
        return peak

    def watch() -> None:
        while not done.wait(interval):
            sample()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield sample
    finally:
        done.set()
        thread.join()


def device_name() -> str:
    """Return the name of the GPU, or that of the processor with the number of threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = models[0] if models else name
    return f"{name}, {torch.get_num_threads()} threads"


def _git(*arguments: str) -> str:
    """The answer of git about this checkout; empty without git or a repository."""
    try:
        result = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return result.stdout.strip()
