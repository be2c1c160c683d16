"""Reports what a table needs on this machine, what is there, and what would supply the rest. Downloads nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from tabulate import tabulate

from baselines import method
from baselines.learned_schedule import PrunerTraining
from benchmarks import ROOT
from benchmarks.commands.memory import Memory, generation_bytes, training_step_bytes
from benchmarks.machine.provenance import device_name
from benchmarks.machine.shards import shards
from benchmarks.models.generate import pictures_at_once
from benchmarks.models.model import DTYPES
from benchmarks.runs.needs import TERA, Need, needs, short, summary
from benchmarks.specs import record
from benchmarks.specs.profiles import PROFILES
from benchmarks.specs.run import RunSpec
from benchmarks.specs.suite import load_suite
from benchmarks.supply import assets
from benchmarks.supply.profiles import source
from dipgo import Sampler
from dipgo.errors import DipgoError

PIXEL = 3
"""The most bytes that a pixel of a picture takes on the disk."""
SECONDS = 1.0
"""How long each operation of the device is timed."""
MEGA, GIGA = 1e6, 1e9


@dataclass(frozen=True)
class Finding:
    """A line of the report."""

    about: str
    text: str
    hinders: bool = False
    """Whether the table could not start, or not be finished, because of it."""


def examine(suite: Path, profile: str, workspace: Path = ROOT / "runs") -> tuple[str, bool]:
    """Return the report on the runs of a suite in a profile, and whether they could start now."""
    found = needs(load_suite(suite, source(profile).revision, profile), workspace)
    findings = [*_assets(found), *_memory(found), *_disk(found, workspace), _time(found, profile, workspace)]
    hindrances = sum(finding.hinders for finding in findings)
    ready = "it could start now" if not hindrances else f"it could not start now: see the {hindrances} marked !"
    rows = [["!" if finding.hinders else "", finding.about, finding.text] for finding in findings]
    head = f"{suite.stem}, {profile} profile: {summary(found)}"
    return "\n".join([head, "", tabulate(rows, tablefmt="plain", disable_numparse=True), "", ready]), not hindrances


def _assets(found: Sequence[Need]) -> list[Finding]:
    names = list(dict.fromkeys(name for need in found for name in need.assets))
    reasons = {name: assets.missing(name) for name in names}
    findings, lacking = [], [name for name in names if reasons[name]]
    for name, reason in reasons.items():
        text = f"{reason.removeprefix(f'{name} ')} ({_gigabytes(assets.size(name))})" if reason else "present"
        findings.append(Finding(name, text, bool(reason)))
    every = Finding("all of them", f"python -m benchmarks fetch {' '.join(lacking)}")
    return findings + [every] * (len(lacking) > 1)


def _memory(found: Sequence[Need]) -> list[Finding]:
    """Return the memory of the largest step beside that of the GPU, or of the machine where there is no GPU."""
    has, where = _capacity()
    device = Finding("device", f"{device_name()}; {_gigabytes(has)} {where}")
    steps = {key: estimate for need in found if need.total for key, estimate in _steps(need.spec).items()}
    peaks = {what: estimate().peak for what, estimate in steps.items()}
    if not peaks:
        return [device]
    what = max(peaks, key=peaks.get)
    text = f"{what} takes {_gigabytes(peaks[what])} in tensors, by an estimate; context and fragments come on top"
    return [device, Finding("memory", text, peaks[what] > has)]


def _steps(spec: RunSpec) -> dict[str, Callable[[], Memory]]:
    """Return the steps of a run by name, each with the estimate of its memory. The small models of the zoo have
    none."""
    if not PROFILES[spec.profile].paper_models:
        return {}
    model, dtype, many = spec.model, DTYPES[spec.dtype], pictures_at_once(spec.resolution)
    steps = {f"{model}, {many} pictures at once": partial(generation_bytes, model, many, dtype, True)}
    calls = Sampler(spec.scheduler, {}, spec.steps).calls
    for preparation in method(spec.method).prepares(spec.params):
        if isinstance(preparation, PrunerTraining):
            batch, checkpoint = preparation.settings.batch, preparation.settings.checkpoint
            training = partial(training_step_bytes, model, calls, batch, dtype, checkpoint, True)
            steps[f"{model}, a pruner's training over {calls} calls"] = training
    return steps


def _capacity() -> tuple[int, str]:
    """Return the bytes of memory for tensors, and what holds them."""
    if shards().device.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        return free, f"free of its {_gigabytes(total)}"
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "of memory; no GPU, so it runs on the processor"


def _disk(found: Sequence[Need], workspace: Path) -> list[Finding]:
    """Return the bytes that are still to be fetched and made, beside the free space of the disks that take them."""
    lacking = [name for name in dict.fromkeys(name for need in found for name in need.assets) if assets.missing(name)]
    pictures = sum((need.pictures - need.made) * need.spec.resolution**2 * PIXEL for need in found)
    wanted = [("assets", assets.folder(), sum(map(assets.size, lacking))), ("pictures", workspace, pictures)]
    disks: dict[int, list[tuple[str, Path, int]]] = {}
    for item in (item for item in wanted if item[2]):
        disks.setdefault(_existing(item[1]).stat().st_dev, []).append(item)
    findings = []
    for items in disks.values():
        free, taken = shutil.disk_usage(_existing(items[0][1])).free, sum(size for _, _, size in items)
        parts = " and ".join(f"at most {_gigabytes(size)} of {what}" for what, _, size in items)
        text = f"{_gigabytes(free)} free at {items[0][1]}; it takes {parts}"
        findings.append(Finding("disk", text, taken > free))
    return findings


def _existing(path: Path) -> Path:
    return next(each for each in (path.resolve(), *path.resolve().parents) if each.exists())


def _time(found: Sequence[Need], profile: str, workspace: Path) -> Finding:
    """Return the hours of what is left, by the rates of the records of this device. Without records the device is
    timed."""
    known = rates(_records(profile, workspace), device_name())
    dtypes = {need.spec.model: need.spec.dtype for need in found if need.total}
    known = {model: rate for model, rate in known.items() if model in dtypes}
    own = {dtype: measure_rate(dtype) for dtype in {dtypes[model] for model in dtypes.keys() - known.keys()}}
    hours = (
        sum(need.total / (known.get(need.spec.model) or own[need.spec.dtype]) for need in found if need.total) / 3600
    )
    how = [f"{model} at {short(rate / TERA)} TMACs/s as in its records here" for model, rate in sorted(known.items())]
    how += [
        f"{short(rate / TERA)} TMACs/s in {dtype}, measured now on a convolution and a product of SD-1.5's; a whole "
        "model is slower"
        for dtype, rate in sorted(own.items())
    ]
    return Finding(
        "time", f"{'at least ' * bool(own)}{short(hours)} hours for the denoiser: {'; '.join(how) or 'all is made'}"
    )


def _records(profile: str, workspace: Path) -> list[record.Record]:
    """Return the records, including those of trials, that tell how fast the models of a profile are here."""
    published = ROOT / "tables" / "records"
    alike = [each for each in PROFILES.values() if each.paper_models == PROFILES[profile].paper_models]
    folders = [base / each.folder for each in alike for base in (published, workspace / "records")]
    found = []
    for path in (path for folder in folders for path in sorted(folder.glob("*.json"))):
        try:
            found.append(record.read(path))
        except DipgoError:
            continue  # a broken record is the renderer's to name
    return found


def rates(found: Sequence[record.Record], device: str) -> Mapping[str, float]:
    """Return the MACs a second of each model's denoiser by name: the median of its records of a device."""
    rates: dict[str, list[float]] = {}
    for each in found:
        cells = [each.cell(record.ALL, name) for name in ("macs_full", "seconds_denoiser")]
        if all(cells) and each.provenance.get("device") == device:
            rates.setdefault(str(each.spec["model"]), []).append(cells[0]["value"] / cells[1]["value"])
    return {model: median(values) for model, values in rates.items()}


@torch.no_grad()
def measure_rate(dtype: str, seconds: float = SECONDS) -> float:
    """Return the MACs a second of this device, in a convolution and a matrix product of SD-1.5's first block.

    They are timed for 4 pictures of two guidance branches at once.
    """
    device, kind = shards().device, DTYPES[dtype]
    sample = torch.ones(8, 320, 64, 64, dtype=kind, device=device)
    kernel = torch.ones(320, 320, 3, 3, dtype=kind, device=device)
    tokens = torch.ones(8 * 64 * 64, 320, dtype=kind, device=device)
    weight = torch.ones(320, 2560, dtype=kind, device=device)
    work = {
        lambda: torch.nn.functional.conv2d(sample, kernel, padding=1): sample.numel() * 320 * 9,
        lambda: tokens @ weight: tokens.numel() * 2560,
    }
    macs, taken = 0.0, 0.0
    for operation, cost in work.items():
        operation()  # the first call sets up more than it computes
        once = _timed(operation, 1)
        count = max(1, round(seconds / once))
        macs, taken = macs + count * cost, taken + _timed(operation, count)
    return macs / taken


def _timed(operation: Callable[[], Any], count: int) -> float:
    start = perf_counter()
    for _ in range(count):
        operation()
    if shards().device.type == "cuda":
        torch.cuda.synchronize()
    return perf_counter() - start


def _gigabytes(count: float) -> str:
    return f"{count / GIGA:,.1f} GB" if count >= GIGA / 10 else f"{count / MEGA:,.1f} MB"
