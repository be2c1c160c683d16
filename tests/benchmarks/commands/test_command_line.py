"""What the command line says at once: help, version, lists, and bad input, none of which waits for torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks import ROOT
from benchmarks.__main__ import LISTS, _value, main
from benchmarks.commands.listing import KINDS
from dipgo.errors import DipgoError

WITHOUT_TORCH = """
import sys
from benchmarks.__main__ import main
try:
    status = main(sys.argv[1:])
except SystemExit as end:
    status = end.code or 0
sys.exit(f"torch was loaded, status {status}" if "torch" in sys.modules else status)
"""


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ("--help", 0, "measure the runs of a suite"),
        ("--version", 0, "dipgo 0.1.0"),
        ("run --help", 0, "--profile"),
        ("--list rows", 0, "table1 plms-50"),
        ("--list methods", 0, "step_skip"),
        ("--list metrics", 0, "clip_score"),
        ("run table1 --row plms-5O", 1, "unknown row 'plms-5O'; did you mean plms-5 or plms-50"),
        ("run table1 --profile papre", 1, "unknown profile 'papre'; did you mean paper"),
        ("run table1 --set stepps=4", 1, "unknown field 'stepps'; did you mean steps"),
        ("run table1 --set steps=four", 1, "steps is 'four'; it must be an integer"),
        ("run table1 --set params.ratio=.8", 1, "no value of TOML"),
        ("run tabel1", 1, "unknown suite 'tabel1'; did you mean table1"),
    ],
)
def test_it_answers_without_torch(arguments, status, words):
    command = [sys.executable, "-c", WITHOUT_TORCH, *arguments.split()]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == status and words in ended.stdout + ended.stderr, ended.stderr
    assert "torch was loaded" not in ended.stderr and "Traceback" not in ended.stderr


@pytest.mark.parametrize(("kind", "name"), {"models": "embedded emoji-dit", "prompts": "embedded held-out"}.items())
def test_what_the_profiles_have_is_listed(capsys, kind, name):
    with pytest.raises(SystemExit) as end:
        main(["--list", kind])
    assert not end.value.code and name in capsys.readouterr().out.splitlines()


def test_every_list_has_its_kind():
    assert set(LISTS) == set(KINDS)


@pytest.mark.parametrize(
    "value",
    [".8", "5.", "1,5", "0x", "[1", "{a = ", "'half", "4\nlimit = 3", "", "9" * 5000, "[" * 5000, "a b", "\udcff", "-"],
)
def test_a_setting_that_is_no_value_is_refused_in_one_line(value):
    with pytest.raises(DipgoError, match="no value of TOML") as error:
        _value(f"params.ratio={value}", value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.8", 0.8), ("4", 4), ("true", True), ("held-out", "held-out"), ('"a b"', "a b"), ("[1, 2]", [1, 2])]
    + [("{ images = 2 }", {"images": 2}), ("a/b.json", "a/b.json")],
)
def test_a_setting_is_a_value_of_toml_or_a_word(text, value):
    assert _value(f"field={text}", text) == value
