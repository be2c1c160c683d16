from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from dipgo import DipgoError, Schedule


def test_survives_json(tmp_path):
    reuse = np.random.default_rng(0).random((7, 3)) < 0.5
    reuse[0] = False
    schedule = Schedule(("a", "b", "c"), reuse)
    schedule.save(tmp_path / "s.json")
    loaded = Schedule.load(tmp_path / "s.json")
    assert loaded.sites == schedule.sites and (loaded.reuse == reuse).all()
    assert loaded.digest == schedule.digest


def test_digest_sees_a_single_gate():
    reuse = np.zeros((3, 2), dtype=bool)
    other = reuse.copy()
    other[2, 1] = True
    assert Schedule(("a", "b"), reuse).digest != Schedule(("a", "b"), other).digest


def test_is_cut_off_from_the_callers_array():
    reuse = np.zeros((3, 2), dtype=bool)
    schedule = Schedule(("a", "b"), reuse)
    reuse[2] = True
    assert not schedule.reuse.any()
    with pytest.raises(ValueError):
        schedule.reuse[1, 1] = True


@pytest.mark.parametrize(
    ("sites", "reuse", "says"),
    [
        (("a", "b"), np.ones((3, 2), dtype=bool), "call 0"),
        (("a", "b"), np.zeros((3, 3), dtype=bool), "shape"),
        (("a", "b"), np.zeros((0, 2), dtype=bool), "shape"),
        (("a", "b"), np.zeros((3, 2)), "dtype"),
        (("a", "a"), np.zeros((3, 2), dtype=bool), "twice"),
    ],
)
def test_refuses_what_cannot_run(sites, reuse, says):
    with pytest.raises(DipgoError, match=says):
        Schedule(sites, reuse)


def text_of(**fields) -> str:
    return json.dumps({"sites": ["a", "b"], "reuse": ["00", "01"], **fields})


ONES = [[[1.0], [1.0]], [[1.0], [0.5]]]
BROKEN = {
    "nothing": "",
    "a list": "[]",
    "null": "null",
    "no fields": "{}",
    "no reuse": json.dumps({"sites": ["a"]}),
    "reuse of null": text_of(reuse=None),
    "a row of another digit": text_of(reuse=["00", "02"]),
    "a row of another length": text_of(reuse=["00", "0"]),
    "rows of numbers": text_of(reuse=[0, 1]),
    "a row of null": text_of(reuse=["00", None]),
    "rows of lists": text_of(reuse=[["0", "0"], ["0", "1"]]),
    "no rows": text_of(reuse=[]),
    "a text instead of rows": text_of(reuse="00"),
    "sites of numbers": text_of(sites=[1, 2]),
    "sites of lists": text_of(sites=[["a"], ["b"]]),
    "a site of null": text_of(sites=["a", None]),
    "a text instead of sites": text_of(sites="ab"),
    "a site with half a character": '{"sites": ["\\ud800"], "reuse": ["0"]}',
    "a site with a newline": text_of(sites=["a", "b\n"]),
    "coefficients of texts": text_of(coefficients=[[["1"], ["1"]], [["1"], ["1"]]]),
    "coefficients of null": text_of(coefficients=[[[None], [1.0]], [[1.0], [1.0]]]),
    "coefficients of flags": text_of(coefficients=[[[True], [True]], [[True], [True]]]),
    "coefficients of different lengths": text_of(coefficients=[[[1.0], [1.0, 2.0]], [[1.0], [1.0]]]),
    "coefficients of another shape": text_of(coefficients=[1.0, 2.0]),
    "coefficients without end": text_of(coefficients=[[[1e999], [1.0]], [[1.0], [1.0]]]).replace("Infinity", "1e999"),
    "coefficients too large": text_of(coefficients=[[[1.0], [1.0]], [[1.0], [1e300]]]),
    "coefficients nested 500 times": '{"sites": ["a"], "reuse": ["0"], "coefficients": ' + "[" * 500 + "]" * 500 + "}",
    "deep nesting": "[" * 100_000,
    "a number of 5,000 digits": text_of(version=0).replace("0}", "9" * 5000 + "}"),
    "NaN": text_of(coefficients=[[[float("nan")]]]),
    "timesteps of another length": text_of(timesteps=[1, 2, 3]),
    "timesteps of texts": text_of(timesteps=["9", "1"]),
    "timesteps in lists": text_of(timesteps=[[9], [1]]),
    "a misspelt field": text_of(coeficients=ONES),
    "another misspelt field": text_of(timestep=[9, 1]),
    "a field of something else": text_of(model="sd15"),
    "the version to come": text_of(version=2),
    "a version that is a text": text_of(version="1"),
    "a version that is a flag": text_of(version=True),
    "other calls": text_of(calls=3),
    "a field twice": '{"sites": ["a"], "sites": ["a"], "reuse": ["0"]}',
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_no_schedule_is_named_in_one_line(tmp_path, name):
    path = tmp_path / "broken.json"
    path.write_text(BROKEN[name])
    with pytest.raises(DipgoError) as raised:
        Schedule.load(path)
    assert str(raised.value).startswith(f"{path}: not a schedule: ") and "\n" not in str(raised.value)
    assert len(str(raised.value)) < len(str(path)) + 300


@pytest.mark.parametrize("data", ["{}".encode("utf-16"), b"\xff\xfe{}", b'{"sites": ["\xe9"]}'])
def test_a_file_in_another_encoding_is_named(tmp_path, data):
    (tmp_path / "other.json").write_bytes(data)
    with pytest.raises(DipgoError, match=r"other.json: not a schedule: no text in UTF-8"):
        Schedule.load(tmp_path / "other.json")


def test_a_misspelt_field_is_named_with_the_right_one(tmp_path):
    (tmp_path / "s.json").write_text(BROKEN["a misspelt field"])
    with pytest.raises(DipgoError, match="unknown field of a schedule 'coeficients'; did you mean coefficients"):
        Schedule.load(tmp_path / "s.json")


def test_files_from_before_there_were_versions_read_as_they_did(tmp_path):
    old = {"sites": ["a", "b"], "reuse": ["00", "01", "11"]}
    (tmp_path / "old.json").write_text(json.dumps(old))
    loaded = Schedule.load(tmp_path / "old.json")
    assert loaded.to_dict() == old and loaded.digest == "17d6769e12e703c5"
    assert Schedule.from_dict({**old, "calls": 3, "version": 1}).digest == loaded.digest


@pytest.mark.parametrize("as_path", [str, lambda path: path])
def test_paths_may_be_texts(tmp_path, as_path):
    schedule = Schedule.skip_calls(("a",), 3, [0])
    schedule.save(as_path(tmp_path / "s.json"))
    assert Schedule.load(as_path(tmp_path / "s.json")).digest == schedule.digest
    assert json.loads((tmp_path / "s.json").read_text())["version"] == 1


def test_a_full_disk_leaves_the_old_schedule(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    old = Schedule.skip_calls(("a",), 3, [0])
    old.save(tmp_path / "s.json")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DipgoError, match="s.json: not written, nothing left behind: No space left on device"):
        Schedule.dense(("a",), 3).save(tmp_path / "s.json")
    assert Schedule.load(tmp_path / "s.json").digest == old.digest and len(list(tmp_path.iterdir())) == 1


def test_timesteps_are_kept_and_only_then_in_the_digest(tmp_path):
    plain = Schedule.skip_calls(("a",), 3, [0])
    stamped = replace(plain, timesteps=[801, 401.5, 1])
    stamped.save(tmp_path / "s.json")
    loaded = Schedule.load(tmp_path / "s.json")
    assert loaded.timesteps.tolist() == [801, 401.5, 1] and loaded.digest == stamped.digest != plain.digest
    assert "timesteps" not in plain.to_dict()


def test_a_printed_schedule_is_a_map():
    reuse = np.array([[0, 0], [0, 1], [1, 1], [0, 1]], dtype=bool)
    assert str(Schedule(("down", "up"), reuse)).splitlines() == [
        "4 calls x 2 sites, 50% computed",
        "down ##.#",
        "up   #...",
    ]


def test_a_map_of_a_large_schedule_stays_small():
    reuse = np.zeros((1000, 60), dtype=bool)
    reuse[1:, 30:] = True
    lines = str(Schedule([f"blocks.{i}" for i in range(60)], reuse)).splitlines()
    assert len(lines) <= 20 and max(map(len, lines)) <= 130
    assert lines[1].startswith("blocks.0 and 3 more ") and set(lines[1].split()[-1]) == {"#"}
    assert lines[-1].split()[-1] == "1" + "." * 99  # a tenth of the first ten calls


def test_a_map_tells_that_values_are_combined():
    coefficients = np.full((3, 1, 2), 0.5)
    assert "last 2" in str(Schedule(("a",), np.array([[False], [True], [True]]), coefficients)).splitlines()[-1]
