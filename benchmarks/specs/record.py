"""What a finished run leaves behind: one JSON, `<id>-<digest>.json`, written once and atomically. No torch.

Metrics are in base units: MACs an image, seconds, shares in [0, 1], CLIP score out of 100, PSNR in dB.
A metric that was not run is not there; `absent` may say why. It is never 0.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from benchmarks.specs.files import construct, write_text
from benchmarks.specs.metrics import lost
from benchmarks.specs.run import RunSpec
from dipgo.errors import DipgoError, unknown

SCHEMA = 1
ALL = "all"  # the data set of metrics that do not depend on prompts
CELL = ("value", "n", "low", "high", "unit")


@dataclass(frozen=True)
class Record:
    """One run's results.

    metrics: {data set: {metric: {"value": float, and optionally "n", "low", "high", "unit"}}}, where the data
    set is "all" for what does not depend on prompts, else a prompt set. samples: {prompt set: {metric: one
    value an image, in the prompts' order}}, kept to 5 significant digits. schedule: {"sites", "calls",
    "reuse", and "coefficients" where it does more than hold} or None. trace: of a search, [evaluation, fitness]
    of every improvement, or None. absent: {metric: why it was not measured}. provenance: the tables show its
    "date" (ISO 8601), "commit", "dirty" and "device"; the rest (versions, weight hashes, command) is for the
    reader.
    """

    id: str
    digest: str
    spec: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, Mapping[str, Any]]]
    samples: Mapping[str, Mapping[str, list[float]]] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    schedule: Mapping[str, Any] | None = None
    trace: Sequence[tuple[int, float]] | None = None
    schema: int = SCHEMA

    @property
    def file(self) -> str:
        """The record's file name."""
        return f"{self.id}-{self.digest}.json"

    def cell(self, dataset: str, metric: str) -> Mapping[str, Any] | None:
        """A metric on a prompt set, or the prompt-independent one of that name; None where it was not run."""
        return self.metrics.get(dataset, {}).get(metric) or self.metrics.get(ALL, {}).get(metric)

    def validate(self, where: str) -> None:
        """Raises one line that starts with `where`."""
        if self.schema != SCHEMA:
            raise DipgoError(f"{where}: schema {self.schema!r}, expected {SCHEMA}; run it again")
        spec = RunSpec.from_json(self.spec)
        if spec.digest != self.digest:
            raise DipgoError(f"{where}: digest {self.digest} but its spec hashes to {spec.digest}; run it again")
        for dataset in spec.prompts or (ALL,):
            cells = {*self.metrics.get(dataset, {}), *self.metrics.get(ALL, {})}
            if missing := lost(spec.metrics, cells, self.absent, dense=spec.reference is None):
                raise DipgoError(
                    f"{where}: no {', '.join(missing)} on {dataset}, though asked for, and no reason in `absent`; "
                    "run it again"
                )
        for dataset, values in self.samples.items():
            for metric in values:
                if metric not in self.metrics.get(dataset, {}):
                    raise DipgoError(f"{where}: samples of {dataset}.{metric} without the metric; add it")
        for dataset, metrics in self.metrics.items():
            for metric, cell in metrics.items():
                name = f"{where}: metric {dataset}.{metric}"
                if not isinstance(cell, Mapping) or "value" not in cell:
                    raise DipgoError(f"{name} has no value; leave a metric that was not run out")
                for key in cell:
                    if key not in CELL:
                        raise DipgoError(f"{name}: {unknown('key', key, CELL)}")
                values = self.samples.get(dataset, {}).get(metric)
                if values is not None and len(values) != cell.get("n", len(values)):
                    raise DipgoError(f"{name} has n = {cell['n']} but {len(values)} samples")


def _plain(value: Any, name: str) -> Any:
    """Plain JSON values; refuses NaN and infinity by the name of their place."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{name}.{key}") for key, item in value.items()}
    if hasattr(value, "tolist"):  # numpy's scalars and arrays
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{name}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise DipgoError(f"{name} is {value}; leave the metric out and say why in `absent`")
    return value


def _json(record: Record) -> str:
    where = f"record {record.id!r}"
    data = {f.name: _plain(getattr(record, f.name), f"{where}: {f.name}") for f in fields(record)}
    for metrics in data["samples"].values():
        for metric, values in metrics.items():
            metrics[metric] = [float(f"{value:.5g}") for value in values]
    text = json.dumps({"schema": data.pop("schema"), **data}, indent=1, allow_nan=False)
    # One line a list of scalars, so that a diff of two records can be read.
    return re.sub(r"\[\n[^\[\]{}]*\]", lambda match: re.sub(r"\n\s*", " ", match[0]), text) + "\n"


def _files(folder: Path, name: str) -> list[Path]:
    pattern = re.compile(re.escape(name) + r"-[0-9a-f]{16}\.json")
    return sorted(path for path in folder.glob("*.json") if pattern.fullmatch(path.name))


def write(record: Record, folder: Path | str, *, replace: bool = False) -> Path:
    """Writes `<id>-<digest>.json` and returns its path. A folder holds one record an id.

    Raises `DipgoError` when the record is not valid, holds a NaN or an infinity, or when the id has a
    record already and `replace` is false. With `replace`, earlier records of the id go once the new one is
    written.
    """
    folder = Path(folder)
    record.validate(f"record {record.id!r}")
    text = _json(record)
    earlier = _files(folder, record.id)
    if earlier and not replace:
        raise DipgoError(f"{earlier[0]}: this run has a record; pass replace=True to measure it again")
    path = folder / record.file
    write_text(path, text)
    for old in earlier:
        if old != path:
            old.unlink()
    return path


def read(path: Path | str) -> Record:
    """Raises `DipgoError` naming the file where it is not whole or its digest is not its spec's."""
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DipgoError(f"{path}: not a whole record ({error}); delete it and run it again") from error
    if not isinstance(data, dict):
        raise DipgoError(f"{path}: not a record; delete it and run it again")
    record = construct(Record, data, str(path))
    record.validate(str(path))
    if record.file != path.name:
        raise DipgoError(f"{path}: holds {record.file}; give it that name")
    return record


def find(folder: Path | str, id: str, digest: str | None = None) -> Record | None:
    """The record of a run; None where there is none.

    With `digest` only results of exactly that spec count, under another id too (a label changes no result):
    the answer then carries the asked id. Raises `DipgoError` when the folder holds two records of an id.
    """
    folder = Path(folder)
    if digest is not None:
        path = folder / f"{id}-{digest}.json"
        paths = [path] if path.is_file() else sorted(folder.glob(f"*-{digest}.json"))
    else:
        paths = _files(folder, id)
        if len(paths) > 1:
            names = " and ".join(path.name for path in paths)
            raise DipgoError(f"{folder}: {id!r} has the records {names}; delete the stale one")
    if not paths:
        return None
    record = read(paths[0])
    return record if record.id == id else replace(record, id=id, spec={**record.spec, "id": id})
