"""The GPU pack from its list to records, on the CPU with small models in place of the paper's."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

import tables.__main__
from baselines import method
from benchmarks.__main__ import ROOT, main
from benchmarks.commands import gpu_pack
from benchmarks.commands.gpu_pack import Pack, Part, read_pack, run, specs_of
from benchmarks.models import model as models
from benchmarks.specs import record
from benchmarks.speed import latency
from benchmarks.supply import random_weights
from dipgo.errors import DipgoError
from tables.pages.gpu import efficiency
from tests.helpers.small import SMALL

PUBLISHED = ROOT / "tables" / "records"
TABLE1 = Part("table1", ("plms-50", "ours-0.80"))
RATIOS = Part("table8", ("pixart-dpm-20",), ratios=(0.5,))
TRAINING = Part("table8", ("pixart-ours-0.40",), training_steps=1)
TABLE8 = Part("table8", ("pixart-dpm-20", "pixart-ours-0.40", "pixart-dpm-12"))
COMPILED = replace(TABLE8, rows=TABLE8.rows[::2], compiled=True)
PRUNED, STEP = "pixart-dpm-20-pruned-0.50", "pixart-ours-0.40-training"
TIMED = ("seconds_denoiser", "speedup_denoiser", "seconds_end_to_end", "speedup_end_to_end")


@pytest.fixture
def small(monkeypatch):
    """Small models in float32, in which CPUs are faster, and a CPU for the GPU."""
    drawn = random_weights.pipeline

    def pipeline(name, dtype, **where):
        return drawn(name, torch.float32, **where, **SMALL[name])

    monkeypatch.setattr(random_weights, "pipeline", pipeline)
    monkeypatch.setattr(gpu_pack, "DEVICE", "cpu")
    monkeypatch.setattr(latency, "compiled", partial(latency.compiled, backend="eager"))
    models.forget()
    yield
    models.forget()


def pack(*parts: Part, rounds: int = 1) -> Pack:
    return Pack(rounds, 0, parts)


def test_a_machine_without_a_gpu_is_told_so_in_one_line_and_keeps_no_record(tmp_path, capsys):
    assert main(["gpu-pack", "--records", str(tmp_path / "gpu")]) == 1
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: gpu-pack") and "there is none here" in said.splitlines()[0]
    assert not (tmp_path / "gpu").exists()


def test_the_list_names_rows_that_the_suites_have_and_schedules_that_are_published():
    for part in read_pack().part:
        for spec in specs_of(part, PUBLISHED):
            assert spec.profile == "random-weights" and spec.limit == 1
            plans_alone = not part.training_steps and not method(spec.method).prepares(spec.params)
            assert part.training_steps or (plans_alone and "of" not in spec.params), spec.id
    with pytest.raises(DipgoError, match="unknown row of table1 'ours-0.8'; did you mean"):
        specs_of(replace(TABLE1, rows=("ours-0.8",)), PUBLISHED)


def test_a_stand_in_schedule_is_the_published_one_and_says_whose():
    dense, ours = specs_of(TABLE1, PUBLISHED)
    found = record.find(PUBLISHED, "ours-0.80")
    assert ours.method == "stored_schedule" and ours.needs == (dense.digest,) and ours.reference == dense.id
    assert ours.to_json()["params"]["schedule"] == {key: found.schedule[key] for key in ("sites", "reuse")}
    assert ours.params["origin"] == f"emoji-sd, {found.file}"


def test_the_pack_writes_records_of_seconds_macs_ratios_and_a_training_step(small, tmp_path):
    assert not run(pack(TABLE1, RATIOS, TRAINING), 5, PUBLISHED, tmp_path)
    found = {name: record.find(tmp_path, name) for name in (*TABLE1.rows, "pixart-dpm-20", PRUNED, STEP)}
    assert len([*tmp_path.iterdir()]) == len(found)
    for name in (*TABLE1.rows, "pixart-dpm-20", PRUNED):
        assert not found[name].absent and found[name].provenance["device"]
        assert all(found[name].cell("all", metric)["n"] == 1 for metric in TIMED)
    ours, dense = found["ours-0.80"], found["plms-50"]
    assert ours.schedule["calls"] == 51 and dense.schedule is None
    assert dense.cell("all", "speedup_denoiser")["value"] == 1 and dense.cell("all", "macs_full")["value"] > 0
    assert ours.cell("all", "speedup_denoiser")["value"] > 2
    assert abs(found[PRUNED].cell("all", "pruned_ratio")["value"] - 0.5) < 0.05
    step = found[STEP]
    assert step.cell("all", "training_step_seconds")["value"] > 0 and step.cell("all", "training_peak_memory")["value"]
    assert step.spec["params"]["train"]["checkpoint"] and step.spec["params"]["train"]["steps"] == 1


def test_compiled_seconds_join_the_eager_ones_and_other_blocks_are_named(small, tmp_path):
    absent = run(pack(TABLE8, COMPILED), 5, PUBLISHED, tmp_path)
    assert [*absent] == ["pixart-ours-0.40"] and "no module 'transformer_blocks.4'" in absent["pixart-ours-0.40"]
    few = record.find(tmp_path, "pixart-dpm-12")
    assert {*TIMED, *(f"{name}_compiled" for name in TIMED)} <= few.metrics["all"].keys()
    assert record.find(tmp_path, "pixart-ours-0.40").absent.keys() == {"latency"}


def test_what_the_minutes_do_not_reach_is_absent_and_says_so(small, tmp_path, monkeypatch):
    absent = run(pack(TABLE1, TRAINING), 1e-9, PUBLISHED, tmp_path)
    assert len(absent) == 3 and all("minutes were over" in reason for reason in absent.values())
    assert all(not record.find(tmp_path, name).metrics for name in absent)
    absent = run(Pack(1, 600, (replace(RATIOS, ratios=(), compiled=True),)), 5, PUBLISHED, tmp_path)
    assert [*absent] == ["pixart-dpm-20"]  # 600 s are to be left before anything compiles


def test_the_page_holds_seconds_beside_the_papers_speedups_and_names_both_devices(small, tmp_path):
    records = tmp_path / "records" / "gpu"
    run(pack(TABLE8, RATIOS, COMPILED), 5, PUBLISHED, records)
    run(pack(TRAINING), 1e-9, PUBLISHED, records)
    assert page(tmp_path) == 0
    text, csv = ((tmp_path / "out" / file).read_text() for file in ("gpu.md", "gpu.csv"))
    few = record.find(records, "pixart-dpm-12")
    assert f"Measured on {few.provenance['device']}" in text and "AMD MI250" in text
    ours = next(line for line in text.splitlines() if line.startswith("| Ours (w/ Pruned-0.40)"))
    assert "*1.60*" in ours and "–¹" in ours and "transformer_blocks.4" in text
    assert "| 0.5 pruned |" in text and "minutes were over" in text
    assert "pixart-dpm-12,pixart-alpha,efficiency_denoiser_compiled," in csv
    macs = [record.find(records, name).cell("all", "macs_full")["value"] for name in ("pixart-dpm-12", "pixart-dpm-20")]
    speedup = few.cell("all", "speedup_denoiser")["value"]
    assert efficiency(few, record.find(records, "pixart-dpm-20")) == pytest.approx(speedup * macs[0] / macs[1])


def test_no_page_without_a_record(tmp_path, caplog):
    assert page(tmp_path) == 2 and "no record of gpu" in caplog.text


def page(folder) -> int:
    places = ["--records", str(folder / "records"), "--out", str(folder / "out")]
    return tables.__main__.main(["render", "gpu", *places])


def test_no_minutes_are_refused(small, tmp_path):
    with pytest.raises(DipgoError, match="--minutes is 0"):
        run(pack(TABLE1), 0, PUBLISHED, tmp_path)
