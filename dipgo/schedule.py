"""The one thing that a method produces, the runtime consumes and costs are computed from: a `Schedule`. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dipgo.errors import DipgoError, unknown
from dipgo.files import read_json, write_text

VERSION = 1  # of the file format
FIELDS = ("sites", "reuse", "coefficients", "timesteps", "calls", "version")
MAP = (16, 100)  # at most so many lines and columns of a printed schedule


@dataclass(frozen=True, eq=False)
class Schedule:
    """When each gated block reuses its last output: the SubNet of section 3.2."""

    sites: tuple[str, ...]
    """Dotted module paths inside the denoiser, in order of execution."""
    reuse: np.ndarray
    """Bool [calls, sites], true where the block is pruned. There is one row for each denoiser call, not for each step:
    PLMS makes 51 calls for 50 steps. Row 0 is all false, since there is nothing to reuse yet."""
    coefficients: np.ndarray | None = None
    """Float [calls, sites, K]: a reused value is the sum of these times the last K values that the block computed,
    newest first (`dipgo.rules` makes them). What would precede call 0 counts as equal to it. A fourth axis
    holds the guidance branches, in the order in which a batch holds them (the unconditional one first). None is the
    paper's rule: the last value is held."""
    timesteps: np.ndarray | None = None
    """Float [calls]: the timestep of each call of the sampler that the schedule was made for, so that it is refused
    under another one. None where that is not known."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "sites", self._texts(self.sites))
        reuse = np.array(self.reuse)  # a copy: the caller's array stays the caller's
        if reuse.ndim != 2 or reuse.shape[1] != len(self.sites) or not len(reuse):
            raise DipgoError(f"schedule has shape {reuse.shape}, expected [calls, {len(self.sites)}] for its sites")
        if reuse.dtype != bool:
            raise DipgoError(f"schedule has dtype {reuse.dtype}, expected bool (true = reuse)")
        if len(set(self.sites)) != len(self.sites):
            raise DipgoError("schedule names a site twice")
        if reuse[0].any():
            raise DipgoError("schedule reuses in call 0, where nothing has been computed yet; clear its first row")
        self._fix("reuse", reuse)
        if self.coefficients is not None:
            self._fix("coefficients", self._canonical(_numbers("coefficients", self.coefficients, np.float32)))
        if self.timesteps is not None:
            timesteps = _numbers("timesteps", self.timesteps, np.float64)
            if timesteps.shape != (self.calls,):
                raise DipgoError(f"timesteps have shape {timesteps.shape}, expected one for each of {self.calls} calls")
            self._fix("timesteps", timesteps)

    @staticmethod
    def _texts(sites: Sequence[str]) -> tuple[str, ...]:
        sites = (sites,) if isinstance(sites, str) else tuple(sites)
        for site in sites:
            if not isinstance(site, str) or not site.isprintable():
                raise DipgoError(f"a schedule's sites must be dotted paths of modules, not {site!r:.60}")
        return sites

    def _fix(self, name: str, values: np.ndarray | None) -> None:
        if values is not None:
            values.flags.writeable = False
        object.__setattr__(self, name, values)

    def _canonical(self, given: np.ndarray) -> np.ndarray | None:
        """Return one form for all coefficients that do the same: zeros where nothing is reused, no values that nobody
        reads, and None for holding."""
        if given.ndim not in (3, 4) or given.shape[:2] != self.reuse.shape or 0 in given.shape[2:]:
            raise DipgoError(
                f"coefficients have shape {given.shape}, expected [{self.calls}, {len(self.sites)}, K] or, "
                "for each guidance branch, K and branches"
            )
        given[~self.reuse] = 0
        if given.ndim == 4 and (given == given[..., :1]).all():
            given = given[..., 0]
        depth = max(np.nonzero(given)[2], default=0) + 1
        given = given[:, :, :depth].copy()
        return None if depth == 1 and (given[self.reuse] == 1).all() else given

    @classmethod
    def dense(cls, sites: Sequence[str], calls: int) -> Schedule:
        """Return the schedule that computes everything in every call."""
        return cls(tuple(sites), np.zeros((calls, len(sites)), dtype=bool))

    @classmethod
    def skip_calls(cls, sites: Sequence[str], calls: int, computed: Sequence[int]) -> Schedule:
        """Return whole-call skips: calls in `computed`, which must contain 0, run in full; all others reuse
        everything."""
        reuse = np.ones((calls, len(sites)), dtype=bool)
        reuse[list(computed)] = False
        return cls(tuple(sites), reuse)

    @property
    def calls(self) -> int:
        """Denoiser calls of one sampler run."""
        return len(self.reuse)

    @property
    def depth(self) -> int:
        """K: how many values of a site are remembered."""
        return 1 if self.coefficients is None else self.coefficients.shape[2]

    @property
    def digest(self) -> str:
        """16 hex digits that identify sites, gates, coefficients and timesteps."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        """Return a small map: a line for each site and a column for each call, "#" where it is computed and "." where
        it is reused. Where there are too many to show, neighbours share a place; a digit tells the tenths that are
        computed."""
        lines = [f"{self.calls} calls x {len(self.sites)} sites, {1 - self.reuse.mean():.0%} computed"]
        sites, calls = (_groups(count, most) for count, most in zip((len(self.sites), self.calls), MAP, strict=True))
        names = [self.sites[g[0]] + (f" and {len(g) - 1} more" if len(g) > 1 else "") for g in sites]
        width = max(map(len, names))
        for name, group in zip(names, sites, strict=True):
            tenths = [10 - 10 * self.reuse[np.ix_(call, group)].mean() for call in calls]
            marks = ["#" if t == 10 else "." if t == 0 else f"{min(max(t, 1), 9):.0f}" for t in tenths]
            lines.append(f"{name:<{width}} {''.join(marks)}")
        if self.coefficients is not None:
            lines.append(f"reused values combine the last {self.depth} computed ones")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values. Each row is a text of the reuse flags, site 0 first; coefficients are there where
        reused values are not held, timesteps where they are known."""
        rows = ["".join("1" if flag else "0" for flag in row) for row in self.reuse]
        data: dict[str, Any] = {"sites": list(self.sites), "reuse": rows}
        if self.coefficients is not None:
            data["coefficients"] = self.coefficients.tolist()
        if self.timesteps is not None:
            data["timesteps"] = self.timesteps.tolist()
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Schedule:
        """Return the schedule of what `to_dict` gave, with or without `version` (of the format) and `calls`.

        Raises `DipgoError` for anything else, an unknown field included.
        """
        if not isinstance(data, Mapping):
            raise DipgoError(f"a schedule is a table with the fields 'sites' and 'reuse', not a {type(data).__name__}")
        for name in data:
            if name not in FIELDS:
                raise unknown("field of a schedule", name, FIELDS)
        for name in ("sites", "reuse"):
            if not isinstance(data.get(name), (list, tuple)):
                raise DipgoError(f"a schedule needs the field {name!r}, a list of texts")
        version = data.get("version", VERSION)
        if type(version) is not int or version != VERSION:
            raise DipgoError(f"its version is {version!r}, but this dipgo reads version {VERSION}; update dipgo")
        sites, rows = cls._texts(data["sites"]), data["reuse"]
        if not all(isinstance(row, str) and len(row) == len(sites) and not set(row) - {"0", "1"} for row in rows):
            raise DipgoError(f"schedule rows must be texts of {len(sites)} digits 0 or 1, one for each site")
        if data.get("calls", len(rows)) != len(rows):
            raise DipgoError(f"it says calls = {data['calls']!r}, but has {len(rows)} rows")
        reuse = np.array([[flag == "1" for flag in row] for row in rows], dtype=bool).reshape(len(rows), len(sites))
        return cls(sites, reuse, data.get("coefficients"), data.get("timesteps"))

    def save(self, path: Path | str) -> None:
        """Write as JSON, whole or not at all; raises `DipgoError` when the disk refuses."""
        write_text(path, json.dumps({"version": VERSION, **self.to_dict()}, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path | str) -> Schedule:
        """Read from JSON; raises a `DipgoError` that names the file when it is not a schedule."""
        data = read_json(path, "a schedule")
        try:
            return cls.from_dict(data)
        except DipgoError as error:
            raise DipgoError(f"{path}: not a schedule: {error}") from None


def _numbers(name: str, given: Any, dtype: type) -> np.ndarray:
    """Return a copy of finite numbers in the dtype; `given` may be an array or nested lists."""
    try:
        values = np.array(given)
    except (TypeError, ValueError):  # lists of different lengths, or nested without end
        values = np.array(None)
    if values.dtype.kind not in "iuf":
        raise DipgoError(f"a schedule's {name} must be numbers, in lists of equal lengths")
    with np.errstate(over="ignore"):
        values = values.astype(dtype)
    if not np.isfinite(values).all():
        raise DipgoError(f"a schedule's {name} hold NaN or infinity; they must be finite")
    return values


def _groups(count: int, most: int) -> list[np.ndarray]:
    """Return the numbers below `count` in at most so many groups of neighbours."""
    return [group for group in np.array_split(np.arange(count), min(count, most)) if len(group)]
