"""The stored baseline: pictures as one contact sheet a run, their scores and features, and why each was renewed."""

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
import safetensors.numpy
from PIL import Image

from benchmarks.drift import paired_set
from benchmarks.drift.paired_set import LEARNED, PROMPTS, RUNS, STORED, Scores
from benchmarks.machine.provenance import ROOT, provenance
from benchmarks.models.generate import image_paths
from benchmarks.quality.pictures import read as read_picture
from benchmarks.runs import tasks
from benchmarks.specs import record
from benchmarks.specs.files import write_bytes, write_text
from dipgo import DipgoError, Schedule

FOLDER = Path(__file__).parent / "stored"
RECORDS = ROOT / "tables" / "records"
INDEX, FEATURES = "baseline.json", "features.safetensors"
COLUMNS = 8  # of a contact sheet
WAY_OUT = "restore it with: git checkout -- benchmarks/drift"
KEPT = ("date", "commit", "dirty", "device", "packages")  # of the provenance


@dataclass(frozen=True)
class Baseline:
    """What a check compares with. `scores` has no PSNR, which would be that of pictures to themselves."""

    folder: Path
    schedule: Schedule
    scores: Mapping[str, Scores]

    @property
    def count(self) -> int:
        """How many pictures each run has."""
        return len(self.scores[STORED].clip_score)

    def unpack(self, folder: Path, count: int) -> None:
        """The first `count` pictures of every run as files, in the folders that a run would write."""
        for name in RUNS:
            sheet = read_picture(self.folder / f"{name}.png")
            size = sheet.width // COLUMNS
            paths = image_paths(folder / name / PROMPTS, count)
            paths[0].parent.mkdir(parents=True)
            for index, path in enumerate(paths):
                row, column = divmod(index, COLUMNS)
                corner = column * size, row * size
                sheet.crop((*corner, corner[0] + size, corner[1] + size)).save(path)


def load(folder: Path = FOLDER) -> Baseline:
    """The baseline in a folder; `DipgoError` where it is not whole, or where the models have changed since."""
    try:
        data = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        for name, digest in data["files"].items():
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
                raise DipgoError(f"{folder / name} is not the file that {INDEX} names; {WAY_OUT}")
        schedule = Schedule.from_dict(data["schedule"])
        features = safetensors.numpy.load_file(folder / FEATURES)
        scores = {
            name: Scores(np.array(row["clip_score"]), features[name], row["fid"], row["kid"])
            for name, row in data["runs"].items()
        }
    except (OSError, KeyError, TypeError, json.JSONDecodeError, DipgoError) as error:
        raise DipgoError(f"no whole baseline in {folder} ({error}); {WAY_OUT}") from error
    if data["revision"] != paired_set.revision():
        raise DipgoError(
            "the zoo's model, prompts, judge or real pictures are not those of the drift baseline; restore them with: "
            "git checkout -- benchmarks/zoo, or renew the baseline with --update --reason TEXT"
        )
    return Baseline(folder, schedule, {**scores, STORED: scores["dense"]})


def update(reason: str, folder: Path = FOLDER, records: Path = RECORDS, count: int = paired_set.COUNT) -> None:
    """Draw the set anew and store it; `reason` joins those of the earlier baselines. The learned schedule is that of
    the published record.

    The index is written last and holds the digests of the other files: half a baseline is none.
    """
    if not reason.strip():
        raise DipgoError("a baseline is renewed for a reason; say it with --reason TEXT")
    source = record.find(records, RUNS[LEARNED])
    if source is None or source.schedule is None:
        raise DipgoError(f"no record of {RUNS[LEARNED]} in {records}; make it with: nox -s reproduce-table1")
    schedule = Schedule.from_dict(dict(source.schedule))
    with TemporaryDirectory() as temporary:
        place = Path(temporary)
        for name in RUNS:
            tasks.draw(paired_set.task(name, schedule, place / name, place / name, count))
        found = paired_set.scores(schedule, place, place, RUNS, count)
        sheets = {f"{name}.png": _sheet(image_paths(place / name / PROMPTS, count)) for name in RUNS}
    sheets[FEATURES] = safetensors.numpy.save({name: scores.features for name, scores in found.items()})
    stamp = provenance({})
    renewed = {"reason": reason.strip()} | {name: stamp[name] for name in KEPT}
    index = {
        "revision": paired_set.revision(),
        "prompts": PROMPTS,
        "record": source.file,
        "renewals": [*_renewals(folder), renewed],
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in sheets.items()},
        "schedule": schedule.to_dict(),
        "runs": {
            name: {"clip_score": scores.clip_score.tolist(), "fid": scores.fid, "kid": scores.kid}
            for name, scores in found.items()
        },
    }
    for name, content in sheets.items():
        write_bytes(folder / name, content)
    write_text(folder / INDEX, json.dumps(index, indent=1) + "\n")


def _renewals(folder: Path) -> list[dict[str, Any]]:
    path = folder / INDEX
    return json.loads(path.read_text(encoding="utf-8"))["renewals"] if path.exists() else []


def _sheet(paths: list[Path]) -> bytes:
    pictures = [read_picture(path) for path in paths]
    size = pictures[0].width
    sheet = Image.new("RGB", (COLUMNS * size, -(-len(pictures) // COLUMNS) * size))
    for index, picture in enumerate(pictures):
        row, column = divmod(index, COLUMNS)
        sheet.paste(picture, (column * size, row * size))
    data = io.BytesIO()
    sheet.save(data, "PNG", optimize=True)
    return data.getvalue()
