"""What a user can mend: every message is one line that names the thing and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DipgoError(ValueError):
    """Bad input to the suite. The command line prints its message alone and exits non-zero."""


class UnreachableRatio(DipgoError):
    """No threshold on these scores gives a schedule at the asked pruned ratio (Algorithm 1)."""


class PartialTrajectory(DipgoError):
    """A gated denoiser was called fewer or more times than its schedule has rows."""


def unknown(kind: str, name: str, known: Iterable[str]) -> DipgoError:
    """An error for a name that is not in a registry, with the nearest known names."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=2)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"
    return DipgoError(f"unknown {kind} {name!r}; {hint}")
