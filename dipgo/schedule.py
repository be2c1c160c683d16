"""The one thing a method produces, the runtime consumes and costs are computed from: a `Schedule`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dipgo.errors import DipgoError


@dataclass(frozen=True, eq=False)
class Schedule:
    """When each gated block reuses its last output: the SubNet of section 3.2.

    `sites` are dotted module paths inside the denoiser, in order of execution. `reuse` is bool
    [calls, sites]: one row per denoiser call (not per step: PLMS makes 51 calls for 50 steps), true where
    the block is pruned. Row 0 is all false, since there is nothing to reuse yet.

    A reused value is a linear combination of the last K values that the block computed, newest first, by
    `coefficients`, float [calls, sites, K] (`dipgo.rules` makes them; what would precede call 0 counts as equal to
    it). With a fourth axis they are those of each guidance branch, in the order in which a batch holds the branches
    (the unconditional one first). None is the paper's rule: the last value is held.
    """

    sites: tuple[str, ...]
    reuse: np.ndarray
    coefficients: np.ndarray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "sites", tuple(self.sites))
        reuse = np.array(self.reuse)  # a copy: the caller's array stays the caller's
        if reuse.ndim != 2 or reuse.shape[1] != len(self.sites) or not len(reuse):
            raise DipgoError(f"schedule has shape {reuse.shape}, expected [calls, {len(self.sites)}] for its sites")
        if reuse.dtype != bool:
            raise DipgoError(f"schedule has dtype {reuse.dtype}, expected bool (true = reuse)")
        if len(set(self.sites)) != len(self.sites):
            raise DipgoError("schedule names a site twice")
        if reuse[0].any():
            raise DipgoError("schedule reuses in call 0, where nothing has been computed yet; clear its first row")
        reuse.flags.writeable = False
        object.__setattr__(self, "reuse", reuse)
        if self.coefficients is not None:
            object.__setattr__(self, "coefficients", self._canonical(self.coefficients))

    def _canonical(self, coefficients: np.ndarray) -> np.ndarray | None:
        """One form for all that do the same: zeros where nothing is reused, no values that nobody reads, and None
        for holding."""
        given = np.array(coefficients, dtype=np.float32)
        if given.ndim not in (3, 4) or given.shape[:2] != self.reuse.shape or 0 in given.shape[2:]:
            raise DipgoError(
                f"coefficients have shape {given.shape}, expected [{self.calls}, {len(self.sites)}, K] or, "
                "for each guidance branch, K and branches"
            )
        if not np.isfinite(given).all():
            raise DipgoError("coefficients hold NaN or infinity: the fit diverged; fit on more pictures")
        given[~self.reuse] = 0
        if given.ndim == 4 and (given == given[..., :1]).all():
            given = given[..., 0]
        depth = max(np.nonzero(given)[2], default=0) + 1
        given = given[:, :, :depth].copy()
        given.flags.writeable = False
        return None if depth == 1 and (given[self.reuse] == 1).all() else given

    @classmethod
    def dense(cls, sites: Sequence[str], calls: int) -> Schedule:
        """Everything is computed in every call."""
        return cls(tuple(sites), np.zeros((calls, len(sites)), dtype=bool))

    @classmethod
    def skip_calls(cls, sites: Sequence[str], calls: int, computed: Sequence[int]) -> Schedule:
        """Whole-call skips: calls in `computed` (which must contain 0) run in full, all others reuse everything."""
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
        """16 hex digits that identify sites, gates and coefficients."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict:
        """JSON-able form; each row is a bit string of the reuse flags, site 0 first. Where nothing but holding
        happens there are no coefficients in it."""
        rows = ["".join("1" if flag else "0" for flag in row) for row in self.reuse]
        data: dict = {"sites": list(self.sites), "reuse": rows}
        if self.coefficients is not None:
            data["coefficients"] = self.coefficients.tolist()
        return data

    @classmethod
    def from_dict(cls, data: dict) -> Schedule:
        """The inverse of `to_dict`; raises `DipgoError` on anything else."""
        try:
            sites, rows = tuple(data["sites"]), list(data["reuse"])
        except (KeyError, TypeError):
            raise DipgoError("a schedule needs the keys 'sites' and 'reuse'") from None
        if any(len(row) != len(sites) or set(row) - {"0", "1"} for row in rows):
            raise DipgoError(f"schedule rows must be strings of {len(sites)} digits 0 or 1, one per site")
        reuse = np.array([[flag == "1" for flag in row] for row in rows], dtype=bool)
        try:
            given = data.get("coefficients")
            return cls(sites, reuse, None if given is None else np.array(given, dtype=np.float32))
        except (TypeError, ValueError) as error:
            if isinstance(error, DipgoError):
                raise
            raise DipgoError("a schedule's coefficients must be numbers [calls, sites, K(, branches)]") from None

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Schedule:
        """Read from JSON; names the file when it is not a schedule."""
        try:
            return cls.from_dict(json.loads(path.read_text()))
        except (json.JSONDecodeError, DipgoError) as error:
            raise DipgoError(f"{path}: not a schedule ({error})") from None
