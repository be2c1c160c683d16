"""The stored baseline: pictures as one contact sheet a case, their scores, limits, and why each was renewed."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.drift.cases import CASES, Outcome, outcome, revisions
from benchmarks.machine.provenance import ROOT, provenance
from benchmarks.models.generate import image_paths
from benchmarks.specs import record
from benchmarks.specs.files import write_bytes, write_text
from dipgo import Schedule
from dipgo.errors import DipgoError

FOLDER = Path(__file__).parent / "stored"
RECORDS = ROOT / "tables" / "records"
INDEX = "baseline.json"
COLUMNS = 8  # of a contact sheet
WAY_OUT = "restore it with: git checkout -- benchmarks/drift"
KEPT = ("date", "commit", "dirty", "device", "packages")  # of the provenance


@dataclass(frozen=True)
class Baseline:
    """What a check compares with."""

    outcomes: Mapping[str, Outcome]
    """What each case gave, by its name."""
    schedules: Mapping[str, Schedule]
    """The learned schedules of the cases that have one."""
    limits: Mapping[str, Mapping[str, float]]
    """By case and metric, the most that a change may be; 0 for what is not named."""

    def unpack(self, folder: Path) -> None:
        """Write the pictures of every case as files, in the folders that a run would write."""
        for name, case in CASES.items():
            paths = image_paths(folder / name / case.prompts, case.count)
            paths[0].parent.mkdir(parents=True)
            for path, picture in zip(paths, self.outcomes[name].pixels, strict=True):
                Image.fromarray(picture).save(path)


def load(folder: Path = FOLDER) -> Baseline:
    """The baseline in a folder; `DipgoError` where it is not whole, or where the models have changed since."""
    try:
        data = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        outcomes = {}
        for name, case in data["cases"].items():
            path = _sheet_path(folder, name, case["sha256"])
            sheet = path.read_bytes()
            if hashlib.sha256(sheet).hexdigest() != case["sha256"]:
                raise DipgoError(f"{path} is not the file that {INDEX} names; {WAY_OUT}")
            scores = {metric: np.array(values) for metric, values in case["scores"].items()}
            outcomes[name] = Outcome(_cut(sheet, case["count"]), scores, case["distances"], case["facts"])
        schedules = {name: Schedule.from_dict(schedule) for name, schedule in data["schedules"].items()}
        made_with, limits = data["revisions"], data["limits"]
    except (OSError, KeyError, TypeError, json.JSONDecodeError, DipgoError) as error:
        raise DipgoError(f"no whole baseline in {folder} ({error}); {WAY_OUT}") from error
    if made_with != revisions():
        raise DipgoError(
            "the zoo's models, prompts, judge or real pictures are not those of the drift baseline; restore them with: "
            "git checkout -- benchmarks/zoo, or renew the baseline with --update --reason TEXT"
        )
    return Baseline(outcomes, schedules, limits)


def draw(records: Path = RECORDS) -> Baseline:
    """Draw and score every case anew; learned schedules are those of the published records. There are no limits yet."""
    schedules = {name: _schedule(name, records) for name, case in CASES.items() if case.learned}
    outcomes = {}
    with TemporaryDirectory() as temporary:
        for name, case in CASES.items():
            folders = (Path(temporary) / each for each in (name, case.reference))
            outcomes[name] = outcome(case, schedules.get(name), *folders)
    return Baseline(outcomes, schedules, {})


def store(baseline: Baseline, reason: str, folder: Path = FOLDER) -> None:
    """Write a baseline into a folder; `reason` joins those of the earlier ones.

    The index names the files of the pictures by their digests, so that the old baseline holds until the new index
    replaces the old one. Then the files that it does not name are deleted.
    """
    sheets = {name: _sheet(each.pixels) for name, each in baseline.outcomes.items()}
    digests = {name: hashlib.sha256(sheet).hexdigest() for name, sheet in sheets.items()}
    renewed = {"reason": reason.strip()} | {name: provenance({})[name] for name in KEPT}
    index = {
        "revisions": revisions(),
        "renewals": [*_renewals(folder), renewed],
        "limits": baseline.limits,
        "schedules": {name: schedule.to_dict() for name, schedule in baseline.schedules.items()},
        "cases": {
            name: {
                "count": len(each.pixels),
                "sha256": digests[name],
                "scores": {metric: values.tolist() for metric, values in each.scores.items()},
                "distances": each.distances,
                "facts": each.facts,
            }
            for name, each in baseline.outcomes.items()
        },
    }
    paths = {name: _sheet_path(folder, name, digest) for name, digest in digests.items()}
    for name, path in paths.items():
        write_bytes(path, sheets[name])
    write_text(folder / INDEX, json.dumps(index) + "\n")
    for path in (*folder.glob("*.png"), *folder.glob(".*.part")):
        if path not in paths.values():
            path.unlink()


def _sheet_path(folder: Path, name: str, digest: str) -> Path:
    return folder / f"{name}-{digest[:8]}.png"


def _schedule(name: str, records: Path) -> Schedule:
    run = CASES[name].run
    source = record.find(records, run)
    if source is None or source.schedule is None:
        raise DipgoError(f"no record of {run} in {records}; make it with: nox -s reproduce-{CASES[name].suite}")
    return Schedule.from_dict({key: value for key, value in source.schedule.items() if key != "calls"})


def _renewals(folder: Path) -> list[dict[str, Any]]:
    path = folder / INDEX
    return json.loads(path.read_text(encoding="utf-8"))["renewals"] if path.exists() else []


def _sheet(pixels: np.ndarray) -> bytes:
    """Pictures [n, h, w, 3] as one PNG, `COLUMNS` a row."""
    n, height, width, channels = pixels.shape
    rows = -(-n // COLUMNS)
    sheet = np.zeros((rows * COLUMNS, height, width, channels), dtype=np.uint8)
    sheet[:n] = pixels
    sheet = sheet.reshape(rows, COLUMNS, height, width, channels).swapaxes(1, 2)
    data = io.BytesIO()
    Image.fromarray(sheet.reshape(rows * height, COLUMNS * width, channels)).save(data, "PNG", optimize=True)
    return data.getvalue()


def _cut(sheet: bytes, count: int) -> np.ndarray:
    """The first `count` pictures of a contact sheet, uint8 [count, h, w, 3]."""
    whole = np.asarray(Image.open(io.BytesIO(sheet)))
    size = whole.shape[1] // COLUMNS
    tiles = whole.reshape(len(whole) // size, size, COLUMNS, size, 3).swapaxes(1, 2)
    return tiles.reshape(-1, size, size, 3)[:count]
