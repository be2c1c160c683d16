"""Whatever a label or a reason holds, a row of a markdown table stays one row with its cells."""

from __future__ import annotations

import re

import pytest

from tables.format import Footnotes, grid

NASTY = ["ours | 0.80", "|a|b|", "a\\|b", "a\\\\|b", "two\nlines", "two\r\nlines", "two\u2028lines", "\n", "|"]


def cells(line: str) -> int:
    """How many cells a reader of GitHub's markdown sees: a backslash escapes the character after it."""
    return len(re.sub(r"\\.", "", line).strip().strip("|").split("|"))


@pytest.mark.parametrize("text", NASTY)
def test_a_cell_or_a_header_stays_one_cell(text):
    for rows, headers in ([[text, "1.0"]], ["Row", "Value"]), ([["plain", "1.0"]], ["Row", text]):
        lines = grid([*rows, ["other", "2.0"]], headers, {"Row"}).split("\n")
        assert len(lines) == 4 and {cells(line) for line in lines} == {2}
        assert len("\n".join(lines).splitlines()) == 4


def test_what_needs_no_escape_stays_as_it_is():
    assert grid([["**a** \\x", "−1.0 [−2.0, 0.5]"]], ["Row", "gap"], {"Row"}).split("\n")[2].split("|")[1:3] == [
        " **a** \\x ",
        " −1.0 [−2.0, 0.5] ",
    ]


@pytest.mark.parametrize("text", ["two\nlines", "two\r\nlines", "two\u2028lines"])
def test_a_reason_is_one_line(text):
    notes = Footnotes()
    assert notes.mark(text) == "–¹" and notes.lines == ["–¹ two lines"]
