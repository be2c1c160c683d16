"""The import arrows: tables -> benchmarks.record, .spec and .suite; benchmarks -> baselines -> dipgo; never back."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("dipgo", "baselines", "benchmarks", "tables", "tests")
ALLOWED = {
    "dipgo": ("dipgo",),
    "baselines": ("baselines", "dipgo"),
    "benchmarks": ("benchmarks", "baselines", "dipgo"),
    "tables": ("tables", "benchmarks.record", "benchmarks.spec", "benchmarks.suite"),
}


def imports(source: str) -> set[str]:
    """Dotted names that a module imports absolutely; `from a import b` gives a.b, since b may be a module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def forbidden(package: str, source: str) -> list[str]:
    ours = [name for name in imports(source) if name.split(".")[0] in PACKAGES]
    return sorted(n for n in ours if not any(n == a or n.startswith(a + ".") for a in ALLOWED[package]))


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_in_one_direction(package):
    modules = sorted((ROOT / package).rglob("*.py"))
    assert modules or package == "baselines"
    broken = {str(p.relative_to(ROOT)): f for p in modules if (f := forbidden(package, p.read_text("utf-8")))}
    assert not broken


def test_a_wrong_arrow_would_be_seen():
    assert forbidden("dipgo", "def f():\n    from benchmarks import record") == ["benchmarks.record"]
    assert forbidden("baselines", "import tables.load") == ["tables.load"]
    assert forbidden("tables", "from benchmarks import record, run") == ["benchmarks.run"]
    assert not forbidden("tables", "from benchmarks.record import Record\nimport tables.stats")


def test_tables_and_records_import_no_torch():
    code = "import sys, tables.__main__, benchmarks.record; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
