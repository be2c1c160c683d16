"""Records: whole or not there, and nothing in them that was not measured."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import ROOT
from benchmarks.specs import record
from benchmarks.specs.record import Record
from benchmarks.specs.run import RunSpec
from dipgo.errors import DipgoError

SPEC = RunSpec(
    "plms-5",
    "embedded",
    "m",
    "r",
    "dense",
    "plms",
    5,
    2.0,
    8,
    "float32",
    ("seen",),
    2,
    0,
    ("psnr",),
    {"a": [1, 2]},
)


def make(spec: RunSpec = SPEC, **changes) -> Record:
    metrics = {"all": {"macs_paper": {"value": np.float32(2.5)}}, "seen": {"psnr": {"value": 30.5, "n": 2}}}
    samples = {"seen": {"psnr": np.array([30.123456, 30.876544])}}
    return Record(spec.id, spec.digest, spec.to_json(), metrics, samples, **changes)


def test_written_record_is_read_back_with_samples_to_five_digits(tmp_path):
    schedule = {"sites": ["down"], "calls": 2, "reuse": ["0", "1"]}
    path = record.write(make(schedule=schedule, absent={"fid": "why"}), tmp_path)
    again = record.read(path)
    assert path.name == f"plms-5-{SPEC.digest}.json" == again.file
    assert again.samples["seen"]["psnr"] == [30.123, 30.877]
    assert again.metrics["all"]["macs_paper"]["value"] == 2.5
    assert (again.schedule, again.absent) == (schedule, {"fid": "why"})
    assert RunSpec.from_json(again.spec) == SPEC
    assert '"psnr": [ 30.123, 30.877 ]' in path.read_text()  # a list of numbers is one line
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_metric_that_was_not_run_is_absent_and_not_zero(tmp_path):
    again = record.read(record.write(make(), tmp_path))
    assert again.cell("seen", "clip_score") is None
    assert again.cell("seen", "psnr")["value"] == 30.5
    assert again.cell("seen", "macs_paper")["value"] == 2.5  # prompt-independent: the same for every prompt set


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"metrics": {"seen": {"psnr": {"value": float("nan")}}}}, "metrics.seen.psnr.value is nan"),
        ({"samples": {"seen": {"psnr": [1.0, float("inf")]}}}, r"samples.seen.psnr\[1\] is inf"),
        ({"provenance": {"seconds": np.float64("nan")}}, "provenance.seconds is nan"),
        ({"metrics": {"seen": {"psnr": {"n": 2}}}}, "seen.psnr has no value"),
        ({"metrics": {"seen": {"psnr": {"value": 1.0, "hihg": 2}}}}, "did you mean high"),
        ({"metrics": {"seen": {"psnr": {"value": 1.0, "n": 3}}}}, "n = 3 but 2 samples"),
        ({"samples": {"seen": {"ssim": [1.0]}}}, "samples of seen.ssim without the metric"),
        ({"digest": "0" * 16}, "its spec hashes to"),
    ],
)
def test_bad_records_are_refused_by_name_and_leave_nothing(tmp_path, changes, words):
    with pytest.raises(DipgoError, match=words):
        record.write(replace(make(), **changes), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_record_is_replaced_only_when_asked(tmp_path):
    path = record.write(make(), tmp_path)
    with pytest.raises(DipgoError, match="replace=True"):
        record.write(make(), tmp_path)
    assert record.write(make(absent={"fid": "why"}), tmp_path, replace=True) == path
    assert record.read(path).absent == {"fid": "why"}


def test_a_new_digest_supersedes_the_ids_earlier_record_and_no_other_id(tmp_path):
    other = replace(SPEC, id="plms-50", steps=50)
    kept = record.write(make(other), tmp_path)
    record.write(make(), tmp_path)
    new = record.write(make(replace(SPEC, seed=1)), tmp_path, replace=True)
    assert sorted(tmp_path.iterdir()) == sorted([kept, new])


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_gives_one_line_and_leaves_the_folder_as_it_was(tmp_path, monkeypatch, call):
    path = record.write(make(), tmp_path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(DipgoError, match="^[^\n]*No space left on device$"):
        record.write(make(absent={"fid": "why"}), tmp_path, replace=True)
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == before


def test_a_truncated_record_is_named(tmp_path):
    path = record.write(make(), tmp_path)
    path.write_text(path.read_text()[:-40])
    with pytest.raises(DipgoError, match=rf"{path.name}: not a whole record"):
        record.read(path)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("schema", 2, "schema 2, expected 1"),
        ("metrix", {}, "unknown field 'metrix'; did you mean metrics"),
        ("spec", {**SPEC.to_json(), "seed": 5}, "its spec hashes to"),
        ("id", "plms-6", "its spec is of 'plms-5'"),
    ],
)
def test_a_tampered_record_is_named(tmp_path, key, value, words):
    path = record.write(make(), tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(DipgoError, match=words) as error:
        record.read(path)
    assert path.name in str(error.value)


def test_a_missing_record_is_none_also_in_a_missing_folder(tmp_path):
    record.write(make(), tmp_path)
    assert record.find(tmp_path, "plms") is None
    assert record.find(tmp_path, "plms-5", "0" * 16) is None
    assert record.find(tmp_path / "none", "plms-5") is None


def test_a_run_is_found_by_id_and_under_another_id_by_its_digest(tmp_path):
    record.write(make(), tmp_path)
    assert record.find(tmp_path, "plms-5").digest == SPEC.digest
    shared = record.find(tmp_path, "twin", SPEC.digest)
    assert (shared.id, shared.spec["id"], shared.digest) == ("twin", "twin", SPEC.digest)
    record.write(shared, tmp_path)
    assert record.find(tmp_path, "twin").metrics == record.find(tmp_path, "plms-5").metrics


def test_two_records_of_one_id_are_ambiguous(tmp_path):
    record.write(make(), tmp_path)
    record.write(make(replace(SPEC, seed=1)), tmp_path / "b")
    (stale,) = (tmp_path / "b").iterdir()
    stale.rename(tmp_path / stale.name)
    with pytest.raises(DipgoError, match="delete the stale one"):
        record.find(tmp_path, "plms-5")


SCHEDULE = {"sites": ["down", "up"], "calls": 5, "reuse": ["00", "11", "00", "01", "11"]}
MADE_OF = {"pruned_ratio": {"value": 0.5}, "computed_calls": {"value": 3}, "step_skip_share": {"value": 0.8}}


def with_schedule(**cells) -> Record:
    metrics = {"all": MADE_OF | {name: {"value": value} for name, value in cells.items()}}
    return replace(make(schedule=SCHEDULE), metrics=metrics, samples={})


def edited(path, **fields):
    """The file with other fields, as somebody would write them by hand; names of nested fields are joined by __."""
    data = json.loads(path.read_text())
    for name, value in fields.items():
        *tables, last = name.split("__")
        place = data
        for table in tables:
            place = place[table]
        place[last] = value
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"metrics__seen__psnr__value": 99.9}, "psnr is 99.9, but its samples' mean is 30.5"),
        ({"metrics__seen__psnr__value": 30.51}, "psnr is 30.51, but its samples' mean is 30.5"),
        ({"samples__seen__psnr": [30.0, 30.1]}, "psnr is 30.5, but its samples' mean is 30.05"),
        ({"samples__seen__psnr": [30.123, None]}, "samples that are no list of finite numbers"),
        ({"samples__seen__psnr": ["30.123", "30.877"]}, "samples that are no list of finite numbers"),
        ({"samples__seen__psnr": []}, "samples that are no list of finite numbers"),
        ({"metrics__seen__psnr__value": None}, "value is None; it must be a finite number"),
        ({"metrics__seen__psnr__value": "30.5"}, "value is '30.5'; it must be a finite number"),
        ({"metrics__seen__psnr__value": True}, "value is True; it must be a finite number"),
        ({"metrics__seen__psnr__value": 10**400}, "it must be a finite number"),
        ({"metrics__seen__psnr__n": 2.0}, "n is 2.0; it must be an integer"),
        ({"metrics__seen__psnr__n": 0}, "n is 0; it must be an integer of at least 1"),
        ({"metrics__all__macs_paper": {"value": 2.5, "low": 3.0, "high": 2.0}}, "between low = 3.0 and high = 2.0"),
        ({"metrics__all__macs_paper": {"value": 2.5, "low": 2.6, "high": 2.7}}, "between low = 2.6 and high = 2.7"),
        ({"metrics__all__macs_paper": {"value": 2.5, "low": None, "high": 3.0}}, "low is None"),
        ({"metrics__all__macs_paper": [2.5]}, "has no value"),
        ({"metrics__all": [2.5]}, "'all' is no table of metrics"),
        ({"metrics": []}, "metrics is no table of names and values"),
        ({"metrics__sean": {"psnr": {"value": 1.0}}}, "unknown prompt set 'sean'; did you mean seen"),
        ({"metrics__all__pruned_ratio": {"value": 1.2}}, "a share lies between 0 and 1"),
        ({"metrics__all__pruned_ratio": {"value": 0.2}}, "pruned_ratio is 0.2, but there is no schedule"),
        ({"spec": []}, "spec is no table"),
        ({"absent": {"fid": None}}, "absent.fid is None; say in words"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused_by_the_names_of_file_and_place(tmp_path, fields, words):
    path = edited(record.write(make(), tmp_path), **fields)
    with pytest.raises(DipgoError) as error:
        record.read(path)
    assert str(error.value).startswith(f"{path}: ") and words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"value": 30.5', '"value": NaN', "NaN is no number of JSON"),
        ('"value": 30.5', '"value": -Infinity', "-Infinity is no number of JSON"),
        ('"value": 30.5', '"value": 1e999', "1e999 is beyond the range"),
        ('"value": 30.5', '"value": 30.5, "value": 31.5', "the key 'value' comes twice"),
        ('"schema": 1', '"schema": 1, "schema": 1', "the key 'schema' comes twice"),
        ('"value": 30.5', '"value": ' + "9" * 5000, "digits"),
        ('"absent": {}', '"absent": ' + "[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('"absent": {}', '"absent": {"fid": "\\ud800"}', "half a character"),
    ],
)
def test_a_record_is_strict_json(tmp_path, old, new, words):
    path = record.write(make(), tmp_path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(DipgoError) as error:
        record.read(path)
    assert str(error.value).startswith(f"{path}: ") and words in str(error.value) and "\n" not in str(error.value)


def test_a_record_in_another_encoding_is_named(tmp_path):
    path = record.write(make(), tmp_path)
    path.write_text(path.read_text(), encoding="utf-16")
    with pytest.raises(DipgoError, match=f"{path}: not a whole record: no text in UTF-8"):
        record.read(path)


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (
            {"computed_calls": 1},
            "computed_calls is 1, but the schedule computes 2 calls in full and 3 at least",
        ),
        ({"computed_calls": 4}, "computed_calls is 4, but"),
    ],
)
def test_cells_that_the_schedule_contradicts_are_refused(tmp_path, cells, words):
    record.write(with_schedule(), tmp_path)
    with pytest.raises(DipgoError, match=words):
        record.write(with_schedule(**cells), tmp_path, replace=True)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["00", "11", "00", "10", "11"], "its schedule is not the one that was measured"),
        (["00", "11", "01", "01", "11"], "its schedule is not the one that was measured"),
        (["00", "00", "00", "00", "11"], "pruned_ratio is 0.5|computed_calls is 3"),
        (["00", "11", "00", "01"], "calls is 5, but there are 4 rows"),
        (["00", "11", "00", "01", "1"], "a row is '1'; each has 2 digits"),
        (["00", "11", "00", "01", [1, 1]], r"a row is \[1, 1\]; each has 2 digits"),
        (["10", "11", "00", "01", "11"], "its first row reuses"),
        (None, "it needs lists of sites and of rows"),
    ],
)
def test_a_changed_row_of_the_schedule_is_seen(tmp_path, rows, words):
    path = record.write(with_schedule(), tmp_path)
    assert record.read(path).schedule == SCHEDULE
    with pytest.raises(DipgoError, match=words):
        record.read(edited(path, schedule__reuse=rows))


def test_changed_coefficients_and_sites_are_seen(tmp_path):
    made = replace(with_schedule(), schedule={**SCHEDULE, "coefficients": [[[1.0, 0.5]] * 2] * 5})
    for changes in ({"schedule__coefficients": [[[1.0, 0.4]] * 2] * 5}, {"schedule__sites": ["up", "down"]}):
        path = record.write(made, tmp_path, replace=True)
        assert record.read(path).schedule == made.schedule
        with pytest.raises(DipgoError, match="its schedule is not the one that was measured"):
            record.read(edited(path, **changes))


def test_every_published_record_reads_and_knows_its_schedule():
    paths = sorted((ROOT / "tables" / "records").rglob("*.json"))
    assert len(paths) > 200
    for path in paths:
        found = record.read(path)
        assert json.loads(path.read_text("utf-8")).get("schedule_digest") == found.schedule_digest, path.name
