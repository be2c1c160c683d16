"""The wheel holds the whole library: installed elsewhere without the checkout, it imports and has its command."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import ROOT

pytest.importorskip("setuptools", "77")  # what the wheel is built with; nothing is downloaded here
EVERY_MODULE = """
import importlib, pkgutil, sys
import dipgo
assert "torch" not in sys.modules
names = [part.name for part in pkgutil.walk_packages(dipgo.__path__, "dipgo.")]
for name in names:
    if name not in ("dipgo.__main__", "dipgo.recipes.pytest_plugin"):
        importlib.import_module(name)
print(dipgo.__file__, *sorted(names), sep="\\n")
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the wheel of a copy of the sources, installed without its dependencies."""
    source, built, target = (tmp_path_factory.mktemp(name) for name in ("source", "built", "target"))
    shutil.copytree(ROOT / "dipgo", source / "dipgo", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    offline = ["--no-deps", "--no-index"]
    build = [*pip, "wheel", str(source), *offline, "--no-build-isolation", "--wheel-dir", str(built)]
    _done(build)
    _done([*pip, "install", *offline, "--target", str(target), *map(str, built.glob("dipgo-*.whl"))])
    return target


def _done(command: list[str], **options) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def run(installed: Path, *command: str) -> str:
    """Run a command from the installed folder, where no checkout is on the path, and return what it prints."""
    env = {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1", "PATH": "", "HF_HUB_OFFLINE": "1"}
    return _done(list(command), cwd=installed, env=env)


def test_every_module_is_in_it_and_imports(installed):
    place, *names = run(installed, sys.executable, "-c", EVERY_MODULE).splitlines()
    assert Path(place).is_relative_to(installed)
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / "dipgo").rglob("*.py")}
    packages = {name.removesuffix(".__init__") for name in modules}
    assert {"dipgo", *names} == packages


def test_the_command_runs(installed):
    text = run(installed, str(installed / "bin" / "dipgo"), "--help")
    assert all(verb in text for verb in ("learn", "apply", "compare", "show", "check"))
