"""Pictures of records: two rows of the 4-step model, whose records are made here."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from PIL import Image

from benchmarks import ROOT
from benchmarks.runs.gallery import Gallery
from benchmarks.specs import record
from benchmarks.specs.pictures import SHEETS
from benchmarks.specs.record import Record
from benchmarks.specs.suite import load_suite
from benchmarks.supply.profiles import source

DENSE, FEWER = "xl-lcm-4", "xl-lcm-3"


@pytest.fixture(scope="module")
def gallery(tmp_path_factory) -> Gallery:
    folder = tmp_path_factory.mktemp("gallery")
    suite = load_suite(ROOT / "benchmarks" / "suites" / "table4.toml", source("embedded").revision)
    specs = {spec.id: spec for spec in suite}
    other = replace(specs[FEWER], id="other", revision="other")
    for spec in (specs[DENSE], specs[FEWER], other):
        record.write(Record(spec.id, spec.digest, spec.to_json(), metrics={}), folder / "records")
    return Gallery(folder / "records", folder / "pictures", 2)


@pytest.fixture(scope="module")
def sheets(gallery) -> dict:
    assert gallery.make([]) == 2
    lines = json.loads((gallery.folder / SHEETS).read_text("utf-8"))
    return {name.rpartition("-")[0]: line for name, line in lines.items()}


def test_a_sheet_holds_the_pictures_side_by_side_with_their_psnr(gallery, sheets):
    for line in (sheets[DENSE], sheets[FEWER]):
        sheet = Image.open(gallery.folder / line["sheet"])
        assert sheet.size == (2 * line["width"], line["height"]) and len(set(line["captions"])) == 2
    assert "psnr" not in sheets[DENSE]
    assert len(sheets[FEWER]["psnr"]) == 2 and all(5 < value < 60 for value in sheets[FEWER]["psnr"])


def test_a_record_of_other_weights_is_not_drawn_and_says_so(sheets):
    assert sheets["other"] == {
        "absent": "the record was measured with other weights or prompts than those that are here"
    }


def test_what_is_drawn_is_kept(gallery, sheets, monkeypatch):
    monkeypatch.setattr(Gallery, "draw", lambda *given: pytest.fail("drawn again"))
    assert gallery.make([DENSE, FEWER, "no-such-row"]) == 2


def test_a_sheet_that_was_deleted_is_drawn_again(gallery, sheets):
    path = gallery.folder / sheets[FEWER]["sheet"]
    before = path.read_bytes()
    path.unlink()
    gallery.make([FEWER])
    assert path.read_bytes() == before
