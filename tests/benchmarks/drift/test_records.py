from __future__ import annotations

import math
from argparse import Namespace
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import ROOT
from benchmarks.drift import command
from benchmarks.drift.cases import CASES
from benchmarks.drift.records import agreements
from benchmarks.specs import record
from benchmarks.specs.record import ALL, Record
from dipgo.errors import DipgoError

RECORDS = ROOT / "tables" / "records"


def made_up(clip=31.0, fid=23.0, n=5000, samples=None, macs=1e12, seconds=1.0):
    spec = replace(CASES["plms"].spec, id=f"made-up-{n}")
    metrics = {
        ALL: {"macs_full": {"value": macs}, "seconds_denoiser": {"value": seconds}},
        "coco": {"clip_score": {"value": clip, "n": n}, "fid_clean": {"value": fid, "n": n}},
    }
    return Record(spec.id, spec.digest, spec.to_json(), metrics, samples={} if samples is None else {"coco": samples})


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"clip": 31.06, "fid": 23.4}, []),
        ({"clip": 30.94, "fid": 22.6}, []),
        ({"clip": 31.07}, ["clip_score"]),
        ({"clip": 30.93, "fid": 23.5}, ["clip_score", "fid_clean"]),
        ({"fid": 22.5}, ["fid_clean"]),
        ({"clip": math.nan}, ["clip_score"]),
        ({"macs": 1e12 + 1e5}, ["macs_full"]),
        ({"seconds": 2.0}, []),
    ],
)
def test_records_agree_within_the_tolerances(changed, expected):
    found = agreements(made_up(), made_up(**changed))
    assert [agreement.metric for agreement in found if agreement.drifted] == expected


def test_records_with_a_value_for_each_picture_have_an_interval_over_pairs():
    random = np.random.default_rng(0)
    first = random.normal(31, 3, 5000)
    second = first + random.normal(0.031, 0.1, 5000)
    samples = [{"clip_score": values.tolist()} for values in (first, second)]
    found = agreements(*(made_up(np.mean(each["clip_score"]), samples=each) for each in samples))
    clip, distance = (next(a for a in found if a.metric == name) for name in ("clip_score", "fid_clean"))
    low, high = clip.interval
    assert low < clip.change < high and clip.change == pytest.approx(0.001, rel=0.2)
    assert high - low == pytest.approx(2 * 1.96 * 0.1 / np.sqrt(5000) / 31, rel=0.1)
    assert distance.interval is None and "no interval" in str(distance)


def test_a_published_record_agrees_with_itself_and_not_with_fewer_steps(capsys):
    ours, fewer = (next(RECORDS.glob(f"{name}-[0-9a-f]*.json")) for name in ("ours-0.80", "ddim-3"))
    given = {"update": False, "reason": None}
    assert command.main(Namespace(**given, records=[ours, ours])) == 0
    assert command.main(Namespace(**given, records=[ours, fewer])) == 1
    assert "clip_score" in capsys.readouterr().out


def test_records_that_cannot_be_compared_are_refused():
    with pytest.raises(DipgoError, match="coco.*5000 pictures in made-up-5000.*, 300 in made-up-300"):
        agreements(made_up(), made_up(n=300))
    with pytest.raises(DipgoError, match="share no metric to compare"):
        agreements(made_up(), replace(made_up(), metrics={}))
    assert record.ALL == ALL
