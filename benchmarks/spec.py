"""What a run is: `RunSpec`, hashed from canonical JSON, and the suites (TOML) that list runs. No torch."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

PROFILES = ("embedded", "paper", "random-weights")
PROTOCOLS = ("clean", "paper")
METRICS = ("macs", "latency", "search", "clip_score", "retrieval_top1", "class_score", "class_top1", "psnr", "ssim")
METRICS += tuple(f"{distance}_{protocol}" for distance in ("fid", "kid") for protocol in ("efflite0", "clean", "paper"))
OVERLAYS = {"random-weights": "paper"}  # a profile that takes its fields from another's
SCHEDULERS = ("ddim", "dpm", "lcm", "plms", "unipc")
T = TypeVar("T")


class BenchmarkError(ValueError):
    """Bad input to `benchmarks` or `tables`: one line that names the thing and the way out.

    Apart from `dipgo.DipgoError`, because importing `dipgo` imports torch.
    """


def first_line(error: Exception) -> str:
    """What an error says, on one line; its type where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def unknown(kind: str, name: object, known: Iterable[str]) -> BenchmarkError:
    """An error for a name that is not in `known`, with the nearest ones."""
    known = sorted(known)
    close = difflib.get_close_matches(str(name), known, n=2)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"
    return BenchmarkError(f"unknown {kind} {name!r}; {hint}")


def construct(cls: type[T], data: Mapping[str, Any], what: str) -> T:
    """`cls(**data)` for a dataclass; a `BenchmarkError` names an unknown or missing field of `what`."""
    known = {f.name: f for f in fields(cls)}
    for name in data:
        if name not in known:
            raise BenchmarkError(f"{what}: {unknown('field', name, known)}")
    for name, f in known.items():
        if name not in data and f.default is MISSING and f.default_factory is MISSING:
            raise BenchmarkError(f"{what}: field {name!r} is missing; add it")
    return cls(**data)


def _freeze(value: Any) -> Any:
    if isinstance(value, Mapping):
        return MappingProxyType({key: _freeze(item) for key, item in value.items()})
    return tuple(map(_freeze, value)) if isinstance(value, (list, tuple)) else value


def _thaw(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _thaw(item) for key, item in value.items()}
    return list(map(_thaw, value)) if isinstance(value, tuple) else value


class Setting(NamedTuple):
    """The fields of a run that decide what its denoiser does when everything is computed. Runs of one setting share
    their trainings and calibration pictures."""

    profile: str
    model: str
    revision: str
    dtype: str
    scheduler: str
    steps: int
    guidance: float
    resolution: int


@dataclass(frozen=True)
class RunSpec:
    """Everything that decides a run's results. Immutable; `params` is a read-only, nested mapping.

    `revision` is a digest of the model's weights and of all that pictures are scored with. `limit` is in images a
    prompt set, `resolution` in pixels. `protocol` says where a picture's noise comes from: "clean", its prompt's
    index; "paper", its place in a batch of 4, as in the authors' evaluation, so that all pictures share four noises.
    `reference` is the id of the run whose images PSNR and SSIM are measured against, None for that run
    itself. `needs` holds the digests of the runs whose results this one consumes (its reference and
    `params["of"]`): when one of them changes, so does this run's digest.
    """

    id: str
    profile: str
    model: str
    revision: str
    method: str
    scheduler: str
    steps: int
    guidance: float
    resolution: int
    dtype: str
    prompts: tuple[str, ...]
    limit: int
    seed: int
    metrics: tuple[str, ...]
    params: Mapping[str, Any] = field(default_factory=dict)
    reference: str | None = None
    needs: tuple[str, ...] = ()
    protocol: str = "clean"

    def __post_init__(self) -> None:
        def bad(name: str, wanted: str) -> BenchmarkError:
            return BenchmarkError(f"run {self.id!r}: {name} is {getattr(self, name)!r}; it must be {wanted}")

        for name in ("id", "profile", "model", "revision", "method", "scheduler", "dtype"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise bad(name, "a non-empty string")
        if not re.fullmatch(r"[A-Za-z0-9._-]+", self.id):
            raise bad("id", "made of letters, digits, '.', '_' and '-', since it names a file")
        for name, least in (("steps", 1), ("resolution", 1), ("limit", 1), ("seed", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise bad(name, f"an integer of at least {least}")
        if type(self.guidance) not in (int, float) or not math.isfinite(self.guidance):
            raise bad("guidance", "a finite number")
        for name in ("prompts", "metrics", "needs"):
            value = getattr(self, name)
            if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
                raise bad(name, "a list of strings")
            object.__setattr__(self, name, tuple(value))
        if self.profile not in PROFILES:
            raise unknown("profile", self.profile, PROFILES)
        if self.scheduler not in SCHEDULERS:
            raise unknown("scheduler", self.scheduler, SCHEDULERS)
        if self.protocol not in PROTOCOLS:
            raise unknown("protocol", self.protocol, PROTOCOLS)
        for metric in self.metrics:
            if metric not in METRICS:
                raise unknown("metric", metric, METRICS)
        if not isinstance(self.params, Mapping):
            raise bad("params", "a table")
        object.__setattr__(self, "guidance", float(self.guidance))  # 4 and 4.0 are one run
        object.__setattr__(self, "params", _freeze(self.params))
        self.digest  # noqa: B018  (params that JSON cannot hold are refused here, not after the run)

    def __reduce__(self) -> tuple[Any, ...]:
        return RunSpec.from_json, (self.to_json(),)  # a read-only mapping does not pickle

    def __hash__(self) -> int:
        return hash((self.id, self.digest))

    @property
    def digest(self) -> str:
        """First 16 hex digits of the sha256 of the canonical JSON of every field but `id`: a label changes
        no result, so two rows may share one run."""
        data = self.to_json()
        del data["id"]
        try:
            text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise BenchmarkError(f"run {self.id!r}: params must be plain JSON values: {error}") from error
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def setting(self) -> Setting:
        return Setting(*(getattr(self, name) for name in Setting._fields))

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists and scalars; `from_json` turns them back into an equal spec."""
        data = {f.name: _thaw(getattr(self, f.name)) for f in fields(self)}
        if self.protocol == PROTOCOLS[0]:
            del data["protocol"]  # it came later than the first records, whose digests shall hold
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunSpec:
        """Raises `BenchmarkError` for an unknown field, a missing field or a value out of range."""
        return construct(cls, data, f"run {data.get('id', '(no id)')!r}")


def address(identity: Mapping[str, Any], folder: Path) -> Path:
    """The file in a folder that belongs to what these plain JSON values identify."""
    return folder / f"{hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]}.json"


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `over` on top, table by table."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def read_toml(path: Path | str) -> dict[str, Any]:
    """The file's tables; a `BenchmarkError` names the file when it is absent or no TOML."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BenchmarkError(f"{path}: no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BenchmarkError(f"{path}: {error}") from error


def profiled(data: Mapping[str, Any], profile: str) -> dict[str, Any]:
    """A file's tables for a profile: those outside `[profile]`, with `[profile.<name>]` on top."""
    overlay = data.get("profile", {}).get(OVERLAYS.get(profile, profile), {})
    return merge({key: value for key, value in data.items() if key != "profile"}, overlay)
