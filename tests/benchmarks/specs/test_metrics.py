"""A metric is one record: from it follow what a suite may ask, what is scored, and what a table shows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from benchmarks import ROOT
from benchmarks.quality import score as quality
from benchmarks.specs import record
from benchmarks.specs.metrics import DENSE, METRICS, Metric, asked, lost, scored, takes
from benchmarks.specs.record import Record
from benchmarks.specs.run import RunSpec
from dipgo.errors import DipgoError
from tables.load import columns

CELLS = {"macs_paper": {"value": 1.0}, "macs_full": {"value": 2.0}}


def brightness(batch):
    return np.array([np.asarray(Image.open(path)).mean() for path in batch.pictures])


def spec(*metrics: str, reference: str | None = "dense") -> RunSpec:
    fields = ("embedded", "m", "r", "dense", "plms", 5, 2.0, 8, "float32", ("seen", "held-out"), 2, 0)
    return RunSpec("run", *fields, metrics, reference=reference, needs=("0" * 16,) if reference else ())


def make(run: RunSpec, metrics, **changes) -> Record:
    return Record(run.id, run.digest, run.to_json(), metrics, **changes)


def test_a_metric_is_one_record_and_a_title(tmp_path, monkeypatch):
    monkeypatch.setitem(
        METRICS, "brightness", Metric("brightness", "levels", "down", 1, function=f"{__name__}:brightness")
    )
    run = spec("macs", "brightness")
    for index, level in enumerate((10, 30)):
        Image.new("RGB", (8, 8), (level,) * 3).save(tmp_path / f"{index}.png")
    given = quality.Inputs([tmp_path / "0.png", tmp_path / "1.png"], ["a", "b"])
    cells, samples = quality.score(given, run.metrics, tmp_path / "kept")
    assert cells == {"brightness": {"value": 20.0, "n": 2}} and samples == {"brightness": [10.0, 30.0]}

    found = {"all": CELLS, "seen": cells, "held-out": cells}
    path = record.write(make(run, found, samples={"seen": samples}), tmp_path)
    assert record.read(path).cell("seen", "brightness")["value"] == 20.0

    (tmp_path / "columns.toml").write_text('[brightness]\ntitle = "Brightness"\n')
    column = columns(path=tmp_path / "columns.toml")["brightness"]
    assert (column.title, column.direction, column.digits, column.scored) == ("Brightness", "down", 1, True)


def test_psnr_to_the_converged_run_stands_beside_that_to_the_dense_run(tmp_path):
    paths = [tmp_path / f"{level}.png" for level in (10, 20, 40)]
    for path, level in zip(paths, (10, 20, 40), strict=True):
        Image.new("RGB", (8, 8), (level,) * 3).save(path)
    names = ["psnr", "psnr_converged"]
    for dense, converged in (([1], [2]), ([1], None), (None, [2])):
        given = quality.Inputs(
            paths[:1],
            ["a"],
            dense=dense and [paths[dense[0]]],
            converged=converged and [paths[converged[0]]],
        )
        cells, _ = quality.score(given, names, tmp_path / "kept")
        off = {"psnr": dense and 10, "psnr_converged": converged and 30}
        assert {name: cell["value"] for name, cell in cells.items()} == pytest.approx(
            {name: 20 * np.log10(255 / error) for name, error in off.items() if error}
        )


@pytest.mark.parametrize("name", ["macs", "latency", "clip_score", "psnr", "fid_efflite0"])
def test_a_metric_that_was_asked_for_is_measured_or_explained(name):
    run, member = spec("macs", name), next(key for key, metric in METRICS.items() if metric.asked_as == name)
    whole = {"all": dict(CELLS), "seen": {}, "held-out": {}}
    for part in ("seen", "held-out"):
        whole[part][member] = {"value": 1.0}
    make(run, whole).check_asked("record")
    if name == "macs":
        whole["all"] = {}
    for part in ("seen", "held-out"):
        lacking = {**whole, part: {}}
        with pytest.raises(DipgoError, match=f"^record: no {name} on {part}, though asked for") as caught:
            make(run, lacking).check_asked("record")
        assert len(str(caught.value).splitlines()) == 1
        make(run, lacking, absent={name: "too few pictures"}).check_asked("record")


def test_a_dense_run_is_not_compared_with_itself():
    assert lost(["psnr", "ssim"], [], [], dense=True) == []
    assert lost(["psnr", "ssim", "clip_score"], ["ssim"], [], dense=False) == ["psnr", "clip_score"]
    make(spec("macs", "psnr", reference=None), {"all": CELLS}).check_asked("record")
    assert lost(["psnr", "psnr_converged"], ["psnr"], [], dense=False) == ["psnr_converged"]
    assert lost(["psnr", "psnr_converged"], ["psnr"], [], dense=False, converged=True) == []


def test_every_function_is_there_and_takes_what_its_record_says(tmp_path):
    """A misspelt function would only be seen when it is first called."""
    for metric in scored(asked()):
        assert callable(metric.compute)
        missing = replace(quality.Inputs([tmp_path], ["a"]), dense=None)
        for name in metric.inputs:
            assert hasattr(missing, name)
            with pytest.raises(DipgoError, match=f"{metric.name} takes '.*', which is missing"):
                missing.check([metric])


def test_the_records_agree_with_themselves():
    assert [name for name, metric in METRICS.items() if name != metric.name] == []
    assert {metric.direction for metric in METRICS.values()} == {"up", "down", ""}
    assert all(metric.direction for metric in scored(asked()))
    assert takes(["psnr", "macs"]) == {DENSE} and not takes(["macs", "latency"])


def test_what_a_suite_may_ask_for():
    assert {"macs", "latency", "search", "clip_score", "fid_paper"} <= {*asked()}
    assert not {"macs_full", "training_seconds", "seconds_denoiser"} & {*asked()}
    for name in ("clipscore", "kid_clean", "training_seconds"):
        for ask in (spec, lambda name: scored([name]), lambda name: takes(["macs", name])):
            with pytest.raises(DipgoError, match=f"unknown metric '{name}'"):
                ask(name)


def test_two_metrics_of_one_name_are_refused():
    with pytest.raises(DipgoError, match="there is a metric 'psnr' already"):
        METRICS["psnr"] = Metric("psnr")


@pytest.mark.parametrize(
    ("name", "count", "different", "reason"),
    [
        ("fid_efflite0", 1, 1, "takes 2 pictures or more, not 1; raise the limit"),
        ("kid_efflite0", 3, 3, "takes 4 pictures or more, not 3; raise the limit"),
        ("retrieval_top1", 120, 99, "takes 100 different captions or more, not 99; raise the limit"),
        ("retrieval_top1", 100, 100, ""),
        ("class_top1", 1, 1, ""),
        ("kid_efflite0", 4, 1, ""),
    ],
)
def test_a_metric_says_what_it_takes_at_least(name, count, different, reason):
    assert METRICS[name].too_few([str(index % different) for index in range(count)]) == reason


def test_every_published_record_is_whole():
    paths = sorted((ROOT / "tables" / "records").rglob("*.json"))
    assert len(paths) > 200
    for path in paths:
        record.read(path)
