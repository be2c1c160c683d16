from __future__ import annotations

import json

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


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"sites": ["a"], "reuse": ["0", "2"]}', json.dumps({"sites": ["a"]})]
)
def test_names_a_file_that_is_no_schedule(tmp_path, text):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(DipgoError, match="broken.json"):
        Schedule.load(path)
