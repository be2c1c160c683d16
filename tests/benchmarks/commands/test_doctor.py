"""The doctor: what a table needs here and what would supply it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.__main__ import main
from benchmarks.commands import doctor
from benchmarks.machine.provenance import device_name
from benchmarks.specs import record
from benchmarks.specs.record import Record
from benchmarks.specs.suite import load_suite
from benchmarks.supply import assets

SUITE = """
[defaults]
model = "emoji-sd"
method = "dense"
scheduler = "ddim"
steps = 50
guidance = 7.5
resolution = 64
dtype = "float32"
prompts = ["seen"]
limit = 10
seed = 0
metrics = ["macs", "clip_score"]

[[run]]
id = "dense"

[[run]]
id = "ours"
method = "dipgo"
reference = "dense"
params = { ratio = 0.8, train = { steps = 10 } }

[profile.paper]
defaults = { dtype = "float16", prompts = ["parti"], limit = 1000 }
model = { emoji-sd = { model = "sd15", resolution = 512 } }
"""
NEEDED = ("sd15", "clip-vit-g-14", "parti", "diffusiondb")


@pytest.fixture()
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "table.toml"
    path.write_text(SUITE, "utf-8")
    return path


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path) -> SimpleNamespace:
    """A machine with 100 GB of everything, and a rate of 1 TMACs a second; steps take 10 GB."""
    here = SimpleNamespace(memory=100e9, disk=100e9, step=10e9, rate=1e12)
    monkeypatch.setenv("DIPGO_ASSETS", str(tmp_path / "assets"))
    monkeypatch.setattr(doctor, "_capacity", lambda: (here.memory, "free"))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=here.disk))
    monkeypatch.setattr(doctor, "measure_rate", lambda dtype: here.rate)
    monkeypatch.setattr(doctor, "_records", lambda profile, workspace: [])
    for name in ("generation_bytes", "training_step_bytes"):
        monkeypatch.setattr(doctor, name, lambda *arguments: SimpleNamespace(peak=int(here.step)))
    return here


@pytest.fixture()
def all_there(monkeypatch):
    monkeypatch.setattr(assets, "missing", lambda name: None)
    monkeypatch.setattr(assets, "revision", lambda name: "0" * 12)


def report(suite: Path, profile: str = "paper") -> tuple[dict[str, str], bool]:
    """The report's lines by what they are about, each with its mark."""
    text, ready = doctor.examine(suite, profile, suite.parent / "runs")
    lines = {}
    for line in text.split("\n")[2:-2]:
        about, rest = line.lstrip("! ").split(maxsplit=1)
        lines[about] = "! "[: line.startswith("!") * 2] + rest
    return lines, ready


def test_a_missing_asset_stands_in_the_way_with_what_would_supply_it(suite, tmp_path):
    lines, ready = report(suite)
    assert not ready
    for name in NEEDED:
        assert lines[name].startswith("!") and f"run `python -m benchmarks fetch {name}`" in lines[name]
        assert "link an own copy to" in lines[name]
    assert lines["all"].endswith(f"python -m benchmarks fetch {' '.join(NEEDED)}")
    assert not (tmp_path / "assets").exists()  # nothing is downloaded by asking


def test_with_everything_there_it_could_start(suite, all_there):
    lines, ready = report(suite)
    assert ready and not any(line.startswith("!") for line in lines.values())
    assert lines["sd15"] == "present" and "all" not in lines


def test_too_little_memory_or_disk_stands_in_the_way(suite, all_there, machine):
    machine.memory = 9e9
    lines, ready = report(suite)
    assert not ready and lines["memory"].startswith("!") and "takes 10.0 GB in tensors" in lines["memory"]
    machine.memory, machine.disk = 100e9, 1.5e9  # 2000 pictures of 512 x 512
    lines, ready = report(suite)
    assert not ready and lines["disk"].startswith("! 1.5 GB free") and "at most 1.6 GB of pictures" in lines["disk"]


def test_equal_steps_are_estimated_once(suite, all_there, monkeypatch):
    asked = []
    for name in ("generation_bytes", "training_step_bytes"):
        monkeypatch.setattr(doctor, name, lambda *how, name=name: asked.append((name, *how)) or SimpleNamespace(peak=1))
    report(suite)
    assert [(name, *how[:2]) for name, *how in asked] == [
        ("generation_bytes", "sd15", 4),
        ("training_step_bytes", "sd15", 50),
    ]


def test_hours_come_from_this_devices_records_or_from_a_measurement_that_says_so(
    suite, all_there, monkeypatch, machine
):
    lines, _ = report(suite)
    # 1000 dense pictures, 1000 of a fifth, and 10 of training, of 50 x 2 x 401.6 G each
    hours = 40.16 * (1000 + 200 + 40) / 3600
    assert lines["time"].startswith(f"at least {hours:.1f}") and "measured now" in lines["time"]
    machine.rate = None
    spec = load_suite(suite, lambda row: "r", "paper")[0]
    cells = {"macs_full": {"value": 40e12}, "seconds_denoiser": {"value": 2.0}}
    made = [
        Record(spec.id, spec.digest, spec.to_json(), {"all": cells}, provenance={"device": name})
        for name in (device_name(), "other")
    ]
    monkeypatch.setattr(doctor, "_records", lambda profile, workspace: made)
    lines, _ = report(suite)
    assert float(lines["time"].split()[0]) == pytest.approx(hours / 20, rel=1e-3)
    assert "sd15 at 20 TMACs/s as in its records here" in lines["time"]


def test_a_rate_is_the_median_of_a_models_records_of_this_device():
    spec = {"model": "sd15"}
    made = [
        SimpleNamespace(
            spec=spec,
            provenance={"device": device},
            cell=lambda dataset, name, seconds=seconds: {"value": 60.0 if name == "macs_full" else seconds},
        )
        for device, seconds in (("here", 1.0), ("here", 2.0), ("here", 3.0), ("there", 9.0))
    ]
    assert doctor.rates(made, "here") == {"sd15": 30.0}
    assert doctor.rates([SimpleNamespace(spec=spec, provenance={}, cell=lambda *name: None)], "here") == {}


def test_records_of_trials_tell_a_rate_and_broken_ones_are_passed_by(suite, tmp_path, monkeypatch):
    monkeypatch.undo()
    spec = load_suite(suite, lambda row: "r", "random-weights")[0]
    folder = tmp_path / "runs" / "records" / "random-weights"
    record.write(Record(spec.id, spec.digest, spec.to_json(), {}), folder)
    (folder / "broken.json").write_text("{")
    found = doctor._records("paper", tmp_path / "runs")
    assert spec.digest in {each.digest for each in found}


def test_the_device_is_measured_in_macs_a_second(monkeypatch):
    monkeypatch.undo()
    assert 1e8 < doctor.measure_rate("float32", 0.01) < 1e15


def test_the_embedded_profile_needs_nothing_but_time(suite):
    lines, ready = report(suite, "embedded")
    assert ready and set(lines) == {"device", "disk", "time"}


def test_the_command_says_by_its_exit_whether_a_table_could_start(suite, monkeypatch, capsys):
    assert main(["doctor", "--profile", "paper", "--table", str(suite)]) != 0
    assert "it could not start now: see the 4 marked !" in capsys.readouterr().out
    monkeypatch.setattr(assets, "missing", lambda name: None)
    monkeypatch.setattr(assets, "revision", lambda name: "0" * 12)
    assert main(["doctor", "--profile", "paper", "--table", str(suite)]) == 0
