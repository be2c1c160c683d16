"""A profile is one file and one entry: commands, doctor and renderer know it by its traits alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

import tables.__main__
from benchmarks import ROOT
from benchmarks.__main__ import main
from benchmarks.commands.doctor import examine
from benchmarks.specs.profiles import DEFAULT, PROFILES, Profile, place, profiled
from benchmarks.specs.run import RunSpec
from benchmarks.supply.profiles import source
from dipgo.errors import DipgoError
from tables.load import load_table
from tables.render import render
from tests.helpers.suites import DEFAULTS

SUITE = (
    DEFAULTS
    + """\
prompts = ["toys"]
limit = 300
metrics = ["macs", "clip_score"]
[[run]]
id = "dense"
"""
)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The toy profile's suite."""
    entry = Profile("toys", "tests.helpers.toy_profile:Toy", folder="toy", unscored="nobody scores toys", note="Toys.")
    monkeypatch.setitem(PROFILES.data, "toy", entry)
    (tmp_path / "suite.toml").write_text(SUITE)
    yield tmp_path / "suite.toml"
    source.cache_clear()


def test_the_command_line_knows_a_new_profile(toy, tmp_path, capsys):
    folders = ["--workspace", str(tmp_path / "runs"), "--records", str(tmp_path / "records")]
    assert main(["run", str(toy), "--profile", "toy", "--dry-run", *folders]) == 0
    assert "1 runs, 3 pictures to make" in capsys.readouterr().out
    for arguments, words in ((["run", "--help"], "toy: toys"), (["--list", "profiles"], "toy: toys")):
        with pytest.raises(SystemExit):
            main(arguments)
        assert words in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--list", "prompts"])
    assert "toy toys" in capsys.readouterr().out.splitlines()


def test_the_doctor_knows_a_new_profile(toy, tmp_path):
    report, ready = examine(toy, "toy", tmp_path / "runs")
    assert "suite, toy profile: 1 runs, 3 pictures" in report and ready


def test_the_renderer_knows_a_new_profile(toy, tmp_path, caplog):
    table = load_table("table1", profile="toy")
    assert table.shown and not any(column.scored for column in table.shown)
    assert render("table1", tmp_path, "toy") == {} and place("toy", tmp_path) == tmp_path / "toy"
    assert tables.__main__.main(["render", "table1", "--profile", "toy", "--records", str(tmp_path)]) == 2
    assert f"{tmp_path / 'toy'}: no record of table1" in caplog.text


def test_unknown_profiles_and_sources_are_refused():
    for ask in (source, lambda name: profiled({}, name), lambda name: place(name, ROOT)):
        with pytest.raises(DipgoError, match="unknown profile 'papre'; did you mean paper"):
            ask("papre")
    with pytest.raises(DipgoError, match="unknown profile 'papre'; did you mean paper"):
        RunSpec("a", "papre", "m", "r", "dense", "ddim", 4, 7.5, 512, "float16", ("coco",), 9, 0, ())
    with pytest.raises(DipgoError, match="there is a profile 'paper' already"):
        PROFILES["paper"] = PROFILES["embedded"]


def test_every_profile_has_a_source_and_a_folder_of_its_own():
    assert DEFAULT in PROFILES and place(DEFAULT, ROOT) == ROOT
    assert len({profile.folder for profile in PROFILES.values()}) == len(PROFILES)
    for name in PROFILES:
        assert source(name).models() and source(name).prompt_sets() and source(name) is source(name)


def test_a_model_is_loaded_without_what_only_judges_need():
    code = (
        "import sys; from benchmarks.models import model; from benchmarks.specs.run import Setting; "
        "model.load(Setting('embedded', 'emoji-sd', 'any', 'float32', 'ddim', 4, 4.0, 64)); "
        "sys.exit(', '.join({'open_clip', 'timm', 'cleanfid'} & sys.modules.keys()) or 0)"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-300:]
