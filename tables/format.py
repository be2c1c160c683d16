"""Numbers and footnotes as the rendered tables show them."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from tabulate import tabulate

COUNTS = ("n", "seeds", "decided_by_n")
"""Columns of a CSV that hold whole numbers."""
ARROWS = {"up": " ↑", "down": " ↓", "": ""}
MARKS = {"better": " ▲", "worse": " ▼", "no difference": " =", "agrees": " ✓", "differs": " ≠"}
LEFT = {"Against", "Row", "Prompts", "Best control", "Verdict"}
"""The headers of columns that hold words."""
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


class Footnotes:
    """Reasons for absent cells, numbered by their first use. The same reason keeps its number."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def mark(self, reason: str) -> str:
        """Return the mark of a reason, such as "–¹"."""
        if reason not in self.reasons:
            self.reasons.append(reason)
        return _sign(self.reasons.index(reason))

    @property
    def lines(self) -> list[str]:
        """The reasons in order, each after its mark."""
        return [f"{_sign(index)} {one_line(reason)}" for index, reason in enumerate(self.reasons)]


def _sign(index: int) -> str:
    return "–" + str(index + 1).translate(SUPERSCRIPTS)


def number(value: float, digits: int, scale: float = 1.0, signed: bool = False) -> str:
    """Return `value * scale` with a fixed number of digits, without a negative zero and with a true minus sign."""
    text = f"{round(value * scale, digits) + 0.0:{'+' if signed else ''}.{digits}f}"
    return text.replace("-", "−")


def spread(value: float, low: float | None, high: float | None, digits: int, scale: float, signed: bool) -> str:
    """Return "value [low, high]", or the value alone where it has no interval."""
    text = number(value, digits, scale, signed)
    if low is None or high is None:
        return text
    return f"{text} [{number(low, digits, scale, signed)}, {number(high, digits, scale, signed)}]"


def deviation(sd: float | None, digits: int, scale: float) -> str:
    """Return " ± sd", or nothing where the standard deviation is unknown or rounds to 0."""
    shown = sd is not None and round(sd * scale, digits) > 0
    return f" ± {number(sd, digits, scale)}" if shown else ""


def one_line(text: str) -> str:
    """Return the text in one line, with spaces for its line breaks."""
    return " ".join(text.splitlines())


def grid(rows: Iterable[Sequence[str]], headers: Sequence[str], left: Container[str]) -> str:
    """Return a markdown table.

    rows: the texts of the cells. Pipes and line breaks in them end no cell and no row.
    headers: the texts of the first row.
    left: the headers of the columns that hold words. All others hold numbers and are aligned to the right.
    """
    align = ["left" if header in left else "right" for header in headers]
    cells = [list(map(_cell, row)) for row in rows]
    return tabulate(cells, list(map(_cell, headers)), tablefmt="pipe", disable_numparse=True, colalign=align)


def _cell(text: str) -> str:
    """Return the text as it must be written in a cell: a backslash before each pipe, and two for each one that precedes
    it."""
    return re.sub(r"(\\*)\|", r"\1\1\\|", one_line(text))


def csv_text(rows: Iterable[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Return rows as CSV with 6 significant digits. Values that are None are empty.

    rows: the values by the name of their column.
    columns: the columns that are written; by default those of the rows.
    """
    frame = pd.DataFrame(list(rows), columns=columns)
    frame = frame.astype({name: "Int64" for name in COUNTS if name in frame})
    return frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")
