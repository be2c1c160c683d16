"""Numbers and footnotes as the rendered tables show them."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

from tabulate import tabulate

SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


class Footnotes:
    """Reasons, numbered by first use; the same reason keeps its number."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def mark(self, reason: str) -> str:
        if reason not in self.reasons:
            self.reasons.append(reason)
        return _sign(self.reasons.index(reason))

    @property
    def lines(self) -> list[str]:
        """Each reason behind its mark."""
        return [f"{_sign(index)} {reason}" for index, reason in enumerate(self.reasons)]


def _sign(index: int) -> str:
    return "–" + str(index + 1).translate(SUPERSCRIPTS)


def number(value: float, digits: int, scale: float = 1.0, signed: bool = False) -> str:
    """Fixed digits, no negative zero, a true minus sign."""
    text = f"{round(value * scale, digits) + 0.0:{'+' if signed else ''}.{digits}f}"
    return text.replace("-", "−")


def spread(value: float, low: float | None, high: float | None, digits: int, scale: float, signed: bool) -> str:
    text = number(value, digits, scale, signed)
    if low is None or high is None:
        return text
    return f"{text} [{number(low, digits, scale, signed)}, {number(high, digits, scale, signed)}]"


def deviation(sd: float | None, digits: int, scale: float) -> str:
    """ " ± sd" where it shows at these digits."""
    shown = sd is not None and round(sd * scale, digits) > 0
    return f" ± {number(sd, digits, scale)}" if shown else ""


def grid(rows: Iterable[Sequence[str]], headers: Sequence[str], left: Container[str]) -> str:
    """A markdown table; the columns of the headers in `left` are words, all others numbers."""
    align = ["left" if header in left else "right" for header in headers]
    return tabulate(list(rows), headers, tablefmt="pipe", disable_numparse=True, colalign=align)
