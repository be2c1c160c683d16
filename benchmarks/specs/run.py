"""What a run is: a `RunSpec`, and its digest. No torch."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, NamedTuple

from benchmarks.specs.files import construct
from benchmarks.specs.metrics import scored
from benchmarks.specs.profiles import PROFILES
from dipgo.errors import DipgoError, unknown
from dipgo.schedulers import SCHEDULERS

PROTOCOLS = ("clean", "paper")
DTYPES = ("float32", "bfloat16", "float16")


def _freeze(value: Any) -> Any:
    if isinstance(value, Mapping):
        return MappingProxyType({key: _freeze(item) for key, item in value.items()})
    return tuple(map(_freeze, value)) if isinstance(value, (list, tuple)) else value


def _thaw(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _thaw(item) for key, item in value.items()}
    return list(map(_thaw, value)) if isinstance(value, tuple) else value


class Setting(NamedTuple):
    """The fields of a run that decide what its denoiser does when everything is computed.

    Runs of one setting share their trainings and calibration pictures.
    """

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
    """Everything that decides the results of a run. It is immutable."""

    id: str
    """A label, which names the run's record. No result depends on it."""
    profile: str
    model: str
    revision: str
    """A digest of the model's weights and of all that pictures are scored with."""
    method: str
    scheduler: str
    steps: int
    guidance: float
    resolution: int
    """The width and height of a picture, in pixels."""
    dtype: str
    prompts: tuple[str, ...]
    """The names of the prompt sets."""
    limit: int
    """The most pictures of a prompt set."""
    seed: int
    metrics: tuple[str, ...]
    params: Mapping[str, Any] = field(default_factory=dict)
    """The parameters of the method, as a read-only, nested mapping of plain JSON values."""
    reference: str | None = None
    """The id of the run against whose pictures PSNR and SSIM are measured; None where that is this run itself."""
    needs: tuple[str, ...] = ()
    """The digests of the runs whose results this one consumes: its reference and `params["of"]`. Where one of them
    changes, so does the digest of this run."""
    protocol: str = "clean"
    """Where the noise of a picture comes from. "clean": from the index of its prompt. "paper": from its place in a
    batch of 4, as in the authors' evaluation, so that all pictures share four noises."""
    converged: str | None = None
    """The id of the run against whose pictures `psnr_converged` is measured: one with so many steps that more change
    nothing; None where that is this run itself, or where there is none."""

    def __post_init__(self) -> None:
        def bad(name: str, wanted: str) -> DipgoError:
            return DipgoError(f"run {self.id!r}: {name} is {getattr(self, name)!r}; it must be {wanted}")

        for name in ("id", "profile", "model", "revision", "method", "scheduler", "dtype"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise bad(name, "a non-empty string")
        if not re.fullmatch(r"[A-Za-z0-9._-]+", self.id):
            raise bad("id", "made of letters, digits, '.', '_' and '-', since it names a file")
        for name, least in (("steps", 1), ("resolution", 1), ("limit", 1), ("seed", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise bad(name, f"an integer of at least {least}")
        if type(self.guidance) not in (int, float) or not abs(self.guidance) <= sys.float_info.max:
            raise bad("guidance", "a finite number")
        for name in ("prompts", "metrics", "needs"):
            value = getattr(self, name)
            if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
                raise bad(name, "a list of strings")
            object.__setattr__(self, name, tuple(value))
        PROFILES[self.profile]  # noqa: B018  (an unknown profile is refused here)
        if self.scheduler not in SCHEDULERS:
            raise unknown("scheduler", self.scheduler, SCHEDULERS)
        if self.dtype not in DTYPES:
            raise unknown("dtype", self.dtype, DTYPES)
        if self.protocol not in PROTOCOLS:
            raise unknown("protocol", self.protocol, PROTOCOLS)
        scored(self.metrics)  # refuses unknown names
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
        """The first 16 hex digits of the sha256 of the canonical JSON of every field but `id`. A label changes no
        result, so that two rows may share one run."""
        data = self.to_json()
        del data["id"]
        try:
            text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise DipgoError(f"run {self.id!r}: params must be plain JSON values: {error}") from error
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def setting(self) -> Setting:
        """The fields that decide what the denoiser does when everything is computed."""
        return Setting(*(getattr(self, name) for name in Setting._fields))

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain dicts, lists and scalars. `from_json` turns them back into an equal spec."""
        data = {f.name: _thaw(getattr(self, f.name)) for f in fields(self)}
        if self.protocol == PROTOCOLS[0]:
            del data["protocol"]  # it came later than the first records, whose digests shall hold
        if self.converged is None:
            del data["converged"]  # so did this
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunSpec:
        """Return the spec of these fields. Raises `DipgoError` for an unknown or missing field, or a bad value."""
        return construct(cls, data, f"run {data.get('id', '(no id)')!r}")
