"""`python -m dipgo`: what needs no model takes no time, and bad input ends in one line."""

from __future__ import annotations

import subprocess
import sys

import pytest

import dipgo
from benchmarks import ROOT
from dipgo.__main__ import main

LOADED = "import sys; from dipgo.__main__ import main\ntry: main(sys.argv[1:])\nfinally: print('torch' in sys.modules)"


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", LOADED, *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--help"], 0, "import-released"),
        (["import-released", "--help"], 0, "--scheduler"),
        (["--version"], 0, f"dipgo {dipgo.__version__}"),
        (["import-relaesed", "gates.pkl"], 2, "invalid choice: 'import-relaesed'"),
        (["--verison"], 2, "COMMAND"),
        (["import-released", "gates.pkl", "--modle", "sd15"], 2, "--model"),
        (["import-released", "gates.pkl", "--model", "sd16"], 2, "invalid choice: 'sd16'"),
        (["import-released", "gates.pkl", "--model", "sd15", "--scheduler", "ddim", "--steps", "many"], 2, "'many'"),
        (["import-released", "gates.pkl", "--mod", "sd15", "--scheduler", "ddim", "-o", "s.json"], 2, "--model"),
    ],
)
def test_what_needs_no_model_loads_no_torch(arguments, status, says):
    done = run(*arguments)
    text = done.stdout + done.stderr
    assert done.returncode == status and says in text, text
    assert "Warning" not in text and done.stdout.splitlines()[-1] == "False"


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.split()[1].count(".") == 2
