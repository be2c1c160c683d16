"""Where the limits come from: clean repeats at other batch sizes, thread counts and instruction sets, compared with the
baseline. An instruction set takes a process of its own, since it is chosen when torch starts."""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.drift import baseline, check
from benchmarks.drift.check import Finding, Limits
from benchmarks.drift.paired_set import COUNT
from benchmarks.machine.provenance import ROOT, provenance
from benchmarks.specs.files import write_text
from dipgo.errors import DipgoError

log = logging.getLogger(__name__)

PATH = baseline.FOLDER / "noise.json"
FACTOR = 3.0  # limits over the most that was measured: machines that no setting here imitates may round further
INSTRUCTIONS: dict[str, dict[str, str]] = {  # of torch's own kernels, oneDNN, MKL and numpy's OpenBLAS
    "native": {},
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


class Setting(NamedTuple):
    """What a clean repeat differs in."""

    batch: int
    threads: int
    instructions: str


MEASURED = (  # the limits are from these
    Setting(20, 2, "native"),
    Setting(20, 1, "native"),
    Setting(48, 2, "native"),
    Setting(7, 1, "native"),
    Setting(20, 2, "avx2"),
    Setting(5, 1, "avx2"),
    Setting(20, 2, "sse"),
    Setting(11, 1, "sse"),
)
CHECKED = tuple(  # and hold for these, which had no part in them
    Setting(2 + place % 11, (1, 2, 1, 3, 1)[place % 5], tuple(INSTRUCTIONS)[place % 3]) for place in range(20)
)


def measure(path: Path = PATH) -> None:
    """Repeat the set at every setting and write what was found; takes about half a minute a setting."""
    measured = _repeats(MEASURED, COUNT)
    found = _limits(measured.values())
    checked = []
    for setting, findings in _repeats(CHECKED, COUNT).items():
        share = max(_share(finding, found[finding.run][finding.metric]) for finding in findings)
        checked.append(setting._asdict() | {"pictures": COUNT, "passed": share <= 1, "share": share})
    stamp = provenance({})
    data = {
        "rule": f"a limit is {FACTOR:g} times the most that an interval of the measured repeats reached from no change",
        **{name: stamp[name] for name in baseline.KEPT},
        "limits": found,
        "measured": [setting._asdict() | {"changes": _as_json(findings)} for setting, findings in measured.items()],
        "checked": checked,
    }
    write_text(path, json.dumps(data, indent=1) + "\n")


def limits(path: Path = PATH) -> Limits:
    """The limits that follow from the repeats in a file; the file's own `limits` are for its readers."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return _limits([_from_json(repeat["changes"]) for repeat in data["measured"]])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DipgoError(f"{path}: no measured noise ({error}); {baseline.WAY_OUT}") from error


def _limits(repeats: Iterable[Iterable[Finding]]) -> dict[str, dict[str, float]]:
    limits: dict[str, dict[str, float]] = {}
    for finding in [finding for repeat in repeats for finding in repeat]:
        row, metric = limits.setdefault(finding.run, {}), finding.metric
        if metric == "psnr":  # an error FACTOR times as large is this many dB lower
            row[metric] = min(row.get(metric, math.inf), finding.low - 20 * math.log10(FACTOR))
        else:
            row[metric] = max(row.get(metric, 0.0), FACTOR * max(-finding.low, finding.high))
    return limits


def _share(finding: Finding, limit: float) -> float:
    """How much of its limit a change takes up; of PSNR, of the error's size."""
    if finding.metric == "psnr":
        return 10 ** ((limit - finding.low) / 20)
    return max(-finding.low, finding.high) / limit


def _repeats(settings: Iterable[Setting], count: int) -> dict[Setting, list[Finding]]:
    """The changes at each setting, those of one instruction set in one process."""
    found = {}
    for name, variables in INSTRUCTIONS.items():
        own = [setting for setting in settings if setting.instructions == name]
        environment = os.environ | variables | {"OMP_WAIT_POLICY": "passive"}  # there may be more threads than cores
        command = [sys.executable, "-m", "benchmarks.drift.noise", json.dumps([count, own])]
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise DipgoError(f"the repeats with {name} instructions failed; see above")
        for setting, rows in zip(own, json.loads(done.stdout), strict=True):
            found[setting] = _from_json(rows)
    return found


def _in_this_process(count: int, settings: Iterable[Iterable[Any]]) -> Iterator[list[list[Any]]]:
    stored = baseline.load()
    for setting in itertools.starmap(Setting, settings):
        log.info("%d pictures, %s", count, setting)
        torch.set_num_threads(setting.threads)
        yield _as_json(check.changes(stored, count=count, batch=setting.batch))


def _as_json(findings: Iterable[Finding]) -> list[list[Any]]:
    return [[each.run, each.metric, each.value, each.low, each.high] for each in findings]


def _from_json(rows: Iterable[Iterable[Any]]) -> list[Finding]:
    return [Finding(*row) for row in rows]


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    json.dump(list(_in_this_process(*json.loads(sys.argv[1]))), sys.stdout)
