"""What a finished run leaves behind: one JSON file, `<id>-<digest>.json`, written whole or not at all. No torch.

Metrics are in base units: MACs an image, seconds, shares in [0, 1], CLIP score out of 100, PSNR in dB. A metric that
was not measured is left out, and `absent` may say why. It is never 0.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.specs.files import construct
from benchmarks.specs.metrics import METRICS, lost
from benchmarks.specs.run import RunSpec
from dipgo.errors import DipgoError, unknown
from dipgo.files import read_json, write_text

SCHEMA = 1
ALL = "all"
"""The data set of metrics that do not depend on prompts."""
CELL = ("value", "n", "low", "high", "unit")
DIGITS = 5
"""Significant digits to which samples are kept."""
ROUNDING = 1e-6
"""By how much a mean over pictures may be off."""
TABLES = ("spec", "metrics", "samples", "absent", "provenance", "prepared")


@dataclass(frozen=True)
class Record:
    """The results of one run."""

    id: str
    digest: str
    """The digest of the run's spec."""
    spec: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, Mapping[str, Any]]]
    """{data set: {metric: {"value": float, and optionally "n", "low", "high", "unit"}}}. The data set is "all" for what
    does not depend on prompts, else a prompt set."""
    samples: Mapping[str, Mapping[str, list[float]]] = field(default_factory=dict)
    """{prompt set: {metric: one value an image, in the order of the prompts}}, to 5 significant digits."""
    absent: Mapping[str, str] = field(default_factory=dict)
    """{metric: why it was not measured}."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Where the numbers come from. The tables show "date" (ISO 8601), "commit", "dirty" and "device". The rest, such as
    versions and the command, is for the reader."""
    schedule: Mapping[str, Any] | None = None
    """{"sites", "calls", "reuse"}, "timesteps" in records since these are known, and "coefficients" where the schedule
    does more than hold. None where nothing is reused."""
    trace: Sequence[tuple[int, float]] | None = None
    """[evaluation, fitness] of every improvement of a search. None where there was no search."""
    prepared: Mapping[str, Any] = field(default_factory=dict)
    """What the method prepared, in words and numbers: for tuned few steps the chosen configuration, how many were
    tried, and why others were refused."""
    decided: Sequence[Mapping[str, Any]] = ()
    """Under a policy, which decides each picture's schedule while it is drawn: each distinct one as in `schedule`, with
    the number of its "pictures", the most frequent first. Empty where all pictures follow `schedule`."""
    schema: int = SCHEMA

    @property
    def file(self) -> str:
        """The name of the record's file."""
        return f"{self.id}-{self.digest}.json"

    @property
    def schedule_digest(self) -> str | None:
        """16 hex digits of the schedule's content; None without a schedule."""
        if self.schedule is None:
            return None
        return hashlib.sha256(json.dumps(self.schedule, sort_keys=True).encode()).hexdigest()[:16]

    def cell(self, dataset: str, metric: str) -> Mapping[str, Any] | None:
        """Return the cell of a metric on a prompt set, or else the one that depends on no prompts. None where there is
        neither."""
        return self.metrics.get(dataset, {}).get(metric) or self.metrics.get(ALL, {}).get(metric)

    def validate(self, where: str) -> None:
        """Raise a `DipgoError`, which begins with `where`, for the first part of the record that contradicts another:
        the digest and the spec, a cell and its samples, the schedule and the cells that follow from it."""
        if self.schema != SCHEMA:
            raise DipgoError(f"{where}: schema {self.schema!r}, expected {SCHEMA}; run it again")
        for name in TABLES:
            if not isinstance(getattr(self, name), Mapping):
                raise DipgoError(f"{where}: {name} is no table of names and values; run it again")
        spec = RunSpec.from_json(self.spec)
        if spec.digest != self.digest:
            raise DipgoError(f"{where}: digest {self.digest} but its spec hashes to {spec.digest}; run it again")
        if spec.id != self.id:
            raise DipgoError(f"{where}: id {self.id!r} but its spec is of {spec.id!r}; run it again")
        for problem in chain(self._problems_of_cells(spec), self._problems_of_schedule()):
            raise DipgoError(f"{where}: {problem}")

    def check_asked(self, where: str) -> None:
        """Raise one line that starts with `where` for a metric that was asked for and is neither here nor explained."""
        spec = RunSpec.from_json(self.spec)
        for dataset in spec.prompts or (ALL,):
            cells = {*self.metrics.get(dataset, {}), *self.metrics.get(ALL, {})}
            itself = {"dense": spec.reference is None, "converged": spec.converged is None}
            if missing := lost(spec.metrics, cells, self.absent, **itself):
                raise DipgoError(
                    f"{where}: no {', '.join(missing)} on {dataset}, though asked for, and no reason in `absent`; "
                    "run it again"
                )

    def _problems_of_cells(self, spec: RunSpec) -> Iterator[str]:
        """Return what is wrong with the metrics, their samples, and the reasons for those that are absent."""
        for metric, reason in self.absent.items():
            if not isinstance(reason, str) or not reason:
                yield f"absent.{metric} is {reason!r}; say in words why it was not measured"
        for table in (self.metrics, self.samples):
            for dataset, values in table.items():
                if dataset not in (ALL, *spec.prompts):
                    yield str(unknown("prompt set", dataset, (ALL, *spec.prompts)))
                if not isinstance(values, Mapping):
                    yield f"what it holds of {dataset!r} is no table of metrics; run it again"
        for dataset, values in self.samples.items():
            for metric in values:
                if metric not in self.metrics.get(dataset, {}):
                    yield f"samples of {dataset}.{metric} without the metric; add it"
        for dataset, metrics in self.metrics.items():
            for metric, cell in metrics.items():
                samples = self.samples.get(dataset, {}).get(metric)
                yield from (
                    f"metric {dataset}.{metric}{problem}" for problem in _problems_of_cell(metric, cell, samples)
                )

    def _problems_of_schedule(self) -> Iterator[str]:
        """Return what is wrong with the schedule, and with the cells that say how much of it is computed.

        A call in which nothing is computed is free, and no call costs more than one that computes everything. So the
        rows bound the pruned ratio and the number of computed calls. They do not decide them: the cascade, which is
        known only with the model, may free blocks that the schedule does not name.
        """
        cells = {name: cell["value"] for name, cell in self.metrics.get(ALL, {}).items()}
        pruned, computed = cells.get("pruned_ratio"), cells.get("computed_calls")
        if self.schedule is not None and self.decided:
            yield "it has a schedule for all pictures, and one for each; run it again"
            return
        schedules = self.decided or ([] if self.schedule is None else [self.schedule])
        if not schedules:
            if pruned:
                yield f"pruned_ratio is {pruned}, but there is no schedule; run it again"
            return
        for schedule in schedules:
            problem = _problem_of_rows(schedule)
            if problem:
                yield f"schedule: {problem}; run it again"
                return
        weights = [schedule.get("pictures") for schedule in self.decided] or [1]
        if not all(type(weight) is int and weight > 0 for weight in weights):
            yield f"decided schedules have {weights} pictures; each has a number of at least 1"
            return
        rows = [
            (row, weight / sum(weights)) for s, weight in zip(schedules, weights, strict=True) for row in s["reuse"]
        ]
        entered = math.fsum(weight for row, weight in rows if "0" in row)
        whole = math.fsum(weight for row, weight in rows if "1" not in row)
        if computed is not None and not whole - ROUNDING <= computed <= entered + ROUNDING:
            yield (
                f"computed_calls is {computed}, but the schedule computes {whole:g} calls in full and {entered:g} at "
                "least in part; run it again"
            )


def _problems_of_cell(metric: str, cell: Any, samples: Any) -> Iterator[str]:
    """Return what is wrong with one cell, to be said behind its name."""
    if not isinstance(cell, Mapping) or "value" not in cell:
        yield " has no value; leave a metric that was not run out"
        return
    for key in cell:
        if key not in CELL:
            yield f": {unknown('key', key, CELL)}"
    numbers = {key: cell[key] for key in ("value", "n", "low", "high") if key in cell}
    for key, value in numbers.items():
        if not _are_numbers([value]):
            yield f": {key} is {value!r}; it must be a finite number"
            return
    value, n = cell["value"], cell.get("n")
    low, high = cell.get("low", value), cell.get("high", value)
    if n is not None and (type(n) is not int or n < 1):
        yield f": n is {n!r}; it must be an integer of at least 1"
    if not low <= value <= high:
        yield f" is {value}, which does not lie between low = {low} and high = {high}; run it again"
    if metric in METRICS and METRICS[metric].unit == "share" and not 0 <= value <= 1:
        yield f" is {value}; a share lies between 0 and 1"
    if samples is None:
        return
    if not isinstance(samples, Sequence) or not samples or not _are_numbers(samples):
        yield " has samples that are no list of finite numbers; run it again"
        return
    if n is not None and n != len(samples):
        yield f" has n = {n} but {len(samples)} samples"
    mean = math.fsum(samples) / len(samples)
    rounding = 10 ** (1 - DIGITS) * math.fsum(map(abs, samples)) / len(samples)
    if abs(mean - value) > rounding:
        yield f" is {value}, but its samples' mean is {mean:.{DIGITS}g}; run it again"


def _problem_of_rows(schedule: Any) -> str:
    """Return what is wrong with the form of a schedule; empty where nothing is."""
    if not isinstance(schedule, Mapping):
        return "it is no table"
    sites, rows, calls = (schedule.get(key) for key in ("sites", "reuse", "calls"))
    if not isinstance(sites, Sequence) or not isinstance(rows, Sequence) or not rows:
        return "it needs lists of sites and of rows of reuse"
    for row in rows:
        if not isinstance(row, str) or len(row) != len(sites) or set(row) - {"0", "1"}:
            return f"a row is {row!r}; each has {len(sites)} digits 0 or 1, one a site"
    if type(calls) is not int or calls != len(rows):
        return f"calls is {calls!r}, but there are {len(rows)} rows"
    return "its first row reuses, where nothing is computed yet" if "1" in rows[0] else ""


def _are_numbers(values: Any) -> bool:
    """Tell whether values are integers or floats, and finite."""
    try:
        return {type(value) for value in values} <= {int, float} and all(map(math.isfinite, values))
    except OverflowError:  # an integer beyond the range of floats
        return False


def _plain(value: Any, name: str) -> Any:
    """Return the value as plain JSON values. Raises `DipgoError`, which names the place, for NaN and infinity."""
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
    """Return the text of a record's file: its fields, and the digest of its schedule."""
    data = {f.name: getattr(record, f.name) for f in fields(record)}
    for name in ("prepared", "decided"):
        if not data[name]:
            del data[name]  # records from before it was there stay as they are
    if record.schedule is not None:
        data["schedule_digest"] = record.schedule_digest
    text = json.dumps({"schema": data.pop("schema"), **data}, indent=1, allow_nan=False)
    # A list of scalars is one line, so that a diff of two records can be read.
    return re.sub(r"\[\n[^\[\]{}]*\]", lambda match: re.sub(r"\n\s*", " ", match[0]), text) + "\n"


def _files(folder: Path, name: str) -> list[Path]:
    pattern = re.compile(re.escape(name) + r"-[0-9a-f]{16}\.json")
    return sorted(path for path in folder.glob("*.json") if pattern.fullmatch(path.name))


def write(record: Record, folder: Path | str, *, replace: bool = False) -> Path:
    """Write `<id>-<digest>.json` and return its path. A folder holds one record an id.

    record: numpy's scalars and arrays become plain numbers, and samples are rounded to 5 significant digits.
    folder: it is made where it does not exist.
    replace: whether a record that the id already has gives way to the new one. It goes once the new one is written.

    Raises `DipgoError` where the record contradicts itself (see `Record.validate`), holds a NaN or an infinity, or
    where the id has a record and `replace` is false.
    """
    folder, where = Path(folder), f"record {record.id!r}"
    plain = Record(**{f.name: _plain(getattr(record, f.name), f"{where}: {f.name}") for f in fields(record)})
    plain.validate(where)
    for metrics in plain.samples.values():
        for metric, values in metrics.items():
            metrics[metric] = [float(f"{value:.{DIGITS}g}") for value in values]
    text = _json(plain)
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
    """Return the record in a file. Raises a `DipgoError`, which names the file, where it is not whole, not strict JSON,
    or contradicts itself (see `Record.validate`)."""
    path = Path(path)
    try:
        data = read_json(path, "a whole record")
    except DipgoError as error:
        raise DipgoError(f"{error}; delete it and run it again") from error
    if not isinstance(data, dict):
        raise DipgoError(f"{path}: not a record; delete it and run it again")
    kept = data.pop("schedule_digest", None)
    record = construct(Record, data, str(path))
    record.validate(str(path))
    if kept is not None and kept != record.schedule_digest:
        raise DipgoError(f"{path}: its schedule is not the one that was measured ({kept}); run it again")
    if record.file != path.name:
        raise DipgoError(f"{path}: holds {record.file}; give it that name")
    return record


def find(folder: Path | str, id: str, digest: str | None = None) -> Record | None:
    """Return the record of a run, or None where there is none.

    folder: the folder of records.
    id: the id of the run.
    digest: where it is given, only results of exactly that spec count, under another id, too, since a label changes no
        result. The answer then carries the asked id.

    Raises `DipgoError` where the folder holds two records of an id.
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
