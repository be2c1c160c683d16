"""`python -m benchmarks drift`: whether the suite still draws and scores the pictures that it did."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

import torch

from benchmarks.drift import baseline, check, noise
from benchmarks.drift.records import Agreement, agreements
from benchmarks.specs import record
from dipgo.errors import DipgoError


def main(options: argparse.Namespace) -> int:
    """0 where nothing has drifted, or the baseline or its limits are renewed; 1 for drift.

    `options`: `update` with its `reason`, `noise`, or `records`, two files. Raises `DipgoError` for bad input.
    """
    if sum((options.update, options.noise, options.records is not None)) > 1:
        raise DipgoError("--update, --noise and --records are three commands; give one")
    if options.reason is not None and not options.update:
        raise DipgoError("--reason is that of a new baseline; give it with --update")
    if options.records is not None:
        return report(agreements(*map(record.read, options.records)))
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the baseline and its limits are of processors
    torch.set_num_threads(1)  # so small a model gains nothing by more, and on a busy machine they wait for each other
    if options.update:
        baseline.update(options.reason or "")
    elif options.noise:
        noise.measure()
    else:
        return report(check.check(baseline.load(), noise.limits()))
    return 0


def report(findings: Sequence[check.Finding | Agreement]) -> int:
    """Print every finding and how many have drifted; 1 if any has."""
    print("\n".join(map(str, findings)))
    drifted = [each for each in findings if each.drifted]
    print(f"{len(drifted)} of {len(findings)} have drifted" if drifted else f"no drift in {len(findings)} checks")
    return 1 if drifted else 0
