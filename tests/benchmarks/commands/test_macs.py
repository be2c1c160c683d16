from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.commands import macs
from dipgo.errors import DipgoError
from tables.load import HERE, load_paper
from tables.macs import macs_lines, read_counts, render_macs


@pytest.fixture(scope="module")
def counts() -> dict[str, Any]:
    return read_counts()


@pytest.fixture(scope="module")
def paper():
    return load_paper()


def changed(counts: dict[str, Any], method: str, group: str, /, **values: Any) -> dict[str, Any]:
    """The counts with other values in one cell."""
    cells = [
        {**cell, **values} if (cell["method"], cell["group"]) == (method, group) else cell for cell in counts["cells"]
    ]
    assert cells != counts["cells"]
    return {**counts, "cells": cells}


def verdicts(counts: dict[str, Any], paper) -> dict[tuple[str, str], set[str]]:
    found: dict[tuple[str, str], set[str]] = {}
    for line in macs_lines(counts, paper):
        found.setdefault((line.row, line.group), set()).add(line.verdict)
    return found


def test_every_dense_cell_deepcache_on_dit_and_bk_sdm_agree_with_the_print(counts, paper):
    planned = [line for line in macs_lines(counts, paper) if line.printed_ratio is None and "interval" not in line.run]
    assert len(planned) == 18 and {line.verdict for line in planned} == {"agrees"}
    assert all(line.macs_paper == pytest.approx(line.printed, rel=0.002) for line in planned)
    found = verdicts(counts, paper)
    assert found["DeepCache(DiT-XL/2*)-N=2", "high"] == {"agrees"}
    assert found["DeepCache(DiT-XL/2*)-N=5", "low"] == {"differs"}  # by 0.21 %
    assert found["DeepCache", "high"] == found["PLMS - Skip - Interval=2", "high"] == {"not derivable"}


def test_our_pruned_cells_agree_within_the_tolerance_and_have_no_full_count(counts, paper):
    ours = [line for line in macs_lines(counts, paper) if "Ours" in line.row]
    assert len(ours) == 10 and {line.verdict for line in ours} == {"agrees"}
    assert all(line.macs_full is None for line in ours)
    row = ("Ours (w/ Pruned-0.80)", "high")
    for ratio, verdict in [(0.81, "agrees"), (0.82, "differs")]:
        assert verdicts(changed(counts, *row, ratio=ratio), paper)[row] == {verdict}


def test_a_row_without_a_printed_ratio_gets_no_value(counts, paper):
    line = next(line for line in macs_lines(counts, paper) if line.verdict == "no ratio")
    assert (line.table, line.group, line.macs_paper) == ("4", "ours", None)


@pytest.mark.parametrize(
    ("value", "verdict"), [(8.305e12, "agrees"), (8.315e12, "agrees"), (8.32e12, "differs"), (8.28e12, "differs")]
)
def test_a_count_agrees_near_to_the_papers(counts, paper, value, verdict):
    row = ("DiT-XL/2*-70 steps", "low")
    assert verdicts(changed(counts, *row, macs_paper=value), paper)[row] == {verdict}


def test_one_reading_that_agrees_leaves_the_others_as_differing(counts, paper):
    row, cells = ("DeepCache", "high"), list(counts["cells"])
    at = next(i for i, cell in enumerate(cells) if (cell["method"], cell["group"]) == row)
    cells[at] = {**cells[at], "macs_paper": 6.52e12}
    assert verdicts({**counts, "cells": cells}, paper)[row] == {"agrees", "differs"}


def test_a_cell_without_its_twin_is_refused(counts, paper):
    with pytest.raises(DipgoError, match="no cell for .*DeepCache"):
        macs_lines({**counts, "cells": [cell for cell in counts["cells"] if cell["method"] != "DeepCache"]}, paper)
    with pytest.raises(DipgoError, match="the paper prints no MACs for .*DeepCash"):
        macs_lines(changed(counts, "DeepCache", "high", method="DeepCash"), paper)


def test_the_published_table_is_of_the_published_counts(tmp_path):
    for file, text in render_macs().items():
        assert (HERE / "out" / file).read_text("utf-8") == text, "run `python -m tables render macs`"
    with pytest.raises(DipgoError, match="make them with `python -m benchmarks macs`"):
        render_macs(tmp_path / "nothing.json")


def test_the_published_counts_are_of_the_cells_and_come_out_again(counts):
    cells = macs.load_cells()
    assert [{key: cell[key] for key in ("table", "method", "plan")} for cell in counts["cells"]] == [
        {"table": cell.table, "method": cell.method, "plan": cell.plan} for cell in cells
    ]
    again = macs.count_cells([cell for cell in cells if cell.table == "3"])
    assert again == [cell for cell in counts["cells"] if cell["table"] == "3"]


def test_counting_happens_once_for_cells_code_and_packages(tmp_path, monkeypatch):
    counted = []

    def count_cells(cells):
        counted.append(len(cells))
        return []

    monkeypatch.setattr(macs, "count_cells", count_cells)
    monkeypatch.setattr(macs, "count_models", dict)
    cells, path = macs.load_cells(), tmp_path / "macs.json"
    first = macs.count_tables(cells, path)
    assert macs.count_tables(cells, path) == first and len(counted) == 1
    macs.count_tables([replace(cells[0], steps=49), *cells[1:]], path)
    path.write_text(json.dumps(first)[:-9])  # a copy that broke off
    assert macs.count_tables(cells, path) == first and len(counted) == 3
    monkeypatch.setattr(macs, "version", lambda package: "other")
    assert macs.count_tables(cells, path)["digest"] != first["digest"]


def test_a_misspelt_field_of_a_cell_is_named(tmp_path):
    file = tmp_path / "macs.toml"
    file.write_text('[[table]]\ntable = "1"\ncell = [{ metod = "x" }]\n')
    with pytest.raises(DipgoError, match="unknown field 'metod'; did you mean method"):
        macs.load_cells(file)
