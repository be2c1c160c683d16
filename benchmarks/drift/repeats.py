"""Where the limits come from: clean repeats at other batch sizes, thread counts and instruction sets.

An instruction set takes a process of its own, since it is chosen when torch starts: `python -m benchmarks.drift.repeats
SETTINGS FOLDER` repeats the baseline in a folder at each [batch, threads] of the JSON list SETTINGS, and prints the
changes as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks import ROOT
from benchmarks.drift import baseline, check
from benchmarks.drift.check import Finding
from dipgo.errors import DipgoError
from dipgo.interrupts import deaf

FACTOR = 3.0
"""A limit is so many times the most that any repeat has shown: machines that no setting imitates may round further."""
SETTINGS: dict[str, tuple[tuple[int, int], ...]] = {"": ((10, 1), (3, 2)), "avx2": ((5, 1),), "sse": ((7, 1),)}
"""By instruction set, the batch sizes and thread counts of the repeats."""
VARIABLES = {  # of torch's own kernels, oneDNN, MKL and numpy's OpenBLAS
    "": {},
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
    },
    "sse": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "OPENBLAS_CORETYPE": "Nehalem",
    },
}
LEAST = {"pixels": 0.1, "clip_score": 1e-3, "class_score": 1e-3, "psnr": 1e-3, "ssim": 1e-5}
"""Below this a limit is never set: a repeat that happens to round alike says nothing about the next machine."""
LEAST_SHARE = 1e-5
"""The same for FID and KID, relative to the distance itself."""


def limits(folder: Path, settings: dict[str, tuple[tuple[int, int], ...]] = SETTINGS) -> dict[str, dict[str, float]]:
    """By case and metric, the limits that follow from repeating the baseline in `folder` at every setting."""
    stored = baseline.load(folder)
    largest: dict[str, dict[str, float]] = {}
    for instructions, choices in settings.items():
        for finding in _repeat(folder, instructions, choices):
            row = largest.setdefault(finding.case, {})
            row[finding.metric] = max(row.get(finding.metric, 0.0), finding.size)
    found = {}
    for case, row in largest.items():
        old = stored.outcomes[case.removesuffix(check.STORED)]
        least = LEAST | {name: LEAST_SHARE * abs(value) for name, value in old.distances.items()}
        pictures_move = case in stored.outcomes
        found[case] = {
            metric: max(FACTOR * size, least[metric] if pictures_move else least[metric] / 10)
            for metric, size in row.items()
            if metric in least and (metric != check.PIXELS or pictures_move)
        }
    return found


def _repeat(folder: Path, instructions: str, choices: tuple[tuple[int, int], ...]) -> list[Finding]:
    environment = os.environ | VARIABLES[instructions] | {"OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, "-m", "benchmarks.drift.repeats", json.dumps(choices), str(folder)]
    with deaf():
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        printed, _ = process.communicate()
    finally:
        process.kill()  # does nothing once it has ended
    if process.returncode:
        raise DipgoError(f"the repeats with {instructions or 'native'} instructions failed; see above")
    return [Finding(**finding) for finding in json.loads(printed)]


def main(settings: str, folder: str) -> None:
    stored, found = baseline.load(Path(folder)), []
    for batch, threads in json.loads(settings):
        torch.set_num_threads(threads)
        found += [asdict(finding) for finding in check.changes(stored, batch=batch)]
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
