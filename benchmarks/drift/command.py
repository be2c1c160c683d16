"""`python -m benchmarks drift`: whether the suite still draws and scores the pictures that it did."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures import as_completed
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tqdm import tqdm

from benchmarks.drift import baseline, check, repeats
from benchmarks.drift.cases import CASES
from benchmarks.drift.records import Agreement, agreements
from benchmarks.machine.jobs import processes, submitted
from benchmarks.specs import record
from dipgo.errors import DipgoError

WORKERS = 2


def main(options: argparse.Namespace) -> int:
    """Return 0 where nothing has drifted or the baseline was renewed, and 1 for drift.

    `options` holds `update` with its `reason`, or `records`, two files. Raises `DipgoError` for bad input.
    """
    if options.update and options.records is not None:
        raise DipgoError("--update and --records are two commands; give one")
    if options.update and not (options.reason or "").strip():
        raise DipgoError("a baseline is renewed for a reason; say it with --reason TEXT")
    if options.reason is not None and not options.update:
        raise DipgoError("--reason is that of a new baseline; give it with --update")
    if options.records is not None:
        return report(agreements(*map(record.read, options.records)))
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the baseline and its limits are of processors
    if options.update:
        torch.set_num_threads(1)
        update(options.reason)
        return 0
    return report(_side_by_side())


def _side_by_side() -> list[check.Finding]:
    """Check the cases of each model in turn, two models at a time, each in a process of its own."""
    baseline.load()  # bad input is named once, and before anything is drawn
    models = [list(group) for _, group in groupby(CASES, key=lambda name: CASES[name].spec.model)]
    findings = []
    start = "fork" if sys.platform == "linux" else "spawn"  # torch has computed nothing here yet
    workers = processes(min(WORKERS, os.cpu_count() or 1), start)
    with workers as pool, tqdm(total=len(CASES), desc="drift", unit="case") as bar:
        running = {submitted(pool, _check, names): names for names in models}
        for done in as_completed(running):
            findings += done.result()
            bar.update(len(running[done]))
    order = list(CASES)
    return sorted(findings, key=lambda finding: order.index(finding.case.removesuffix(check.STORED)))


def _check(names: Sequence[str]) -> list[check.Finding]:
    torch.set_num_threads(1)  # more threads gain such small models nothing, and wait for each other when busy
    return check.check(baseline.load(), names)


def update(reason: str, folder: Path = baseline.FOLDER, records: Path = baseline.RECORDS) -> None:
    """Draw the cases anew, store them, and measure their limits; it takes some minutes.

    The baseline is stored twice, the first time with limits of 0, so that the repeats have something to compare with.
    """
    drawn = baseline.draw(records)
    with TemporaryDirectory() as temporary:
        trial = Path(temporary)
        baseline.store(drawn, reason, trial)
        found = repeats.limits(trial)
    baseline.store(replace(drawn, limits=found), reason, folder)


def report(findings: Sequence[check.Finding | Agreement]) -> int:
    """Print what drifted, or the largest share of a limit where nothing did; return 1 if anything has drifted."""
    drifted = [finding for finding in findings if finding.drifted]
    print("\n".join(map(str, drifted or findings)))
    print(f"{len(drifted)} of {len(findings)} have drifted" if drifted else f"no drift in {len(findings)} checks")
    return 1 if drifted else 0
