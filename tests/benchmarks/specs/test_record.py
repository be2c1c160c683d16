"""Records: whole or not there, and nothing in them that was not measured."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace

import numpy as np
import pytest

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
    with pytest.raises(DipgoError, match=rf"{path.name}: .* not a whole record"):
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
