"""What a user can mend: every message is one line that names the thing and the way out. No torch."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DipgoError(ValueError):
    """The one kind of error for bad input. A command prints its message alone and exits non-zero."""


class NotWritten(DipgoError):
    """The disk refused a file. This concerns all work that goes on, not only the piece that wanted to write."""


class UnreachableRatio(DipgoError):
    """No threshold on these scores gives a schedule at the asked pruned ratio (Algorithm 1)."""


class PartialTrajectory(DipgoError):
    """A gated denoiser was called fewer or more times than its schedule has rows."""


def unknown(kind: str, name: object, known: Iterable[object]) -> DipgoError:
    """Return the error for a name that is not among the `known` ones; it proposes the nearest names."""
    names = sorted(map(str, known))
    close = difflib.get_close_matches(str(name), names, n=2)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(names)}"
    return DipgoError(f"unknown {kind} {name!r}; {hint}")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type where it has no message."""
    return (str(error).splitlines() or [type(error).__name__])[0]
