"""The import arrows: every room imports only from the rooms below it."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from benchmarks import ROOT

PACKAGES = ("dipgo", "baselines", "benchmarks", "tables")
BELOW = {
    "dipgo": (),
    "baselines": ("dipgo",),
    "benchmarks/specs": ("dipgo.errors", "dipgo.files", "dipgo.registry", "dipgo.schedulers"),
    "benchmarks/machine": ("benchmarks/specs", "dipgo"),
    "benchmarks/quality": ("benchmarks/specs", "dipgo"),
    "benchmarks/supply": ("benchmarks/machine", "benchmarks/specs", "baselines", "dipgo"),
    "benchmarks/models": ("benchmarks/supply", "benchmarks/machine", "benchmarks/specs", "baselines", "dipgo"),
    "benchmarks/prepare": ("benchmarks/models", "benchmarks/supply", "benchmarks/machine", "benchmarks/specs")
    + ("baselines", "dipgo"),
    "benchmarks/speed": ("benchmarks/prepare", "benchmarks/models", "benchmarks/supply", "benchmarks/machine")
    + ("benchmarks/specs", "baselines", "dipgo"),
    "benchmarks/runs": ("benchmarks/speed", "benchmarks/prepare", "benchmarks/models", "benchmarks/supply")
    + ("benchmarks/quality", "benchmarks/machine", "benchmarks/specs", "baselines", "dipgo"),
    "benchmarks/drift": (
        "benchmarks/runs",
        "benchmarks/prepare",
        "benchmarks/models",
        "benchmarks/supply",
        "benchmarks/quality",
    )
    + ("benchmarks/machine", "benchmarks/specs", "baselines", "dipgo"),
    "benchmarks/commands": ("benchmarks/drift", "benchmarks/runs", "benchmarks/speed", "benchmarks/prepare")
    + ("benchmarks/models", "benchmarks/supply", "benchmarks/machine", "benchmarks/specs", "baselines", "dipgo"),
    "benchmarks/zoo": (
        "benchmarks/models",
        "benchmarks/quality",
        "benchmarks/supply",
        "benchmarks/specs",
        "baselines",
        "dipgo",
    ),
    "benchmarks.__main__": ("benchmarks", "dipgo"),
    "tables": ("benchmarks/specs", "dipgo.errors", "dipgo.files", "dipgo.interrupts", "dipgo.registry"),
}
"""The rooms, from the ground up, and what a room may import: rooms as paths, single modules with dots."""
GROUND = ("benchmarks.ROOT",)


def imports(source: str) -> set[str]:
    """The dotted names that a module imports absolutely; `from a import b` gives a.b, since b may be a module."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room_of(path: Path) -> str:
    """The room of a module, given its path below the repository's root."""
    dotted = ".".join(path.with_suffix("").parts)
    return (
        dotted if dotted in BELOW else next(room for room in sorted(BELOW, reverse=True) if path.is_relative_to(room))
    )


def forbidden(room: str, source: str) -> list[str]:
    """What a module of a room imports although it is not below the room."""
    allowed = [place.replace("/", ".") for place in (room, *BELOW[room])]
    ours = [name for name in imports(source) if name.split(".")[0] in (*PACKAGES, "tests") and name not in GROUND]
    return sorted(name for name in ours if not any(name == place or name.startswith(f"{place}.") for place in allowed))


@pytest.mark.parametrize("package", PACKAGES)
def test_every_room_imports_from_below(package):
    paths = [path.relative_to(ROOT) for path in sorted((ROOT / package).rglob("*.py"))]
    wrong = {
        str(path): names
        for path in paths
        if path.name != "__init__.py" and (names := forbidden(room_of(path), (ROOT / path).read_text("utf-8")))
    }
    assert paths and not wrong


def test_the_rooms_have_no_circle():
    """A room stands above all that it may import."""
    order = list(BELOW)
    for room, below in BELOW.items():
        for place in below:
            assert place not in order or order.index(place) < order.index(room), (room, place)


def test_no_folder_leads_back_to_itself():
    """Folders inside of rooms count as well; a module beside its package's folders stands for itself."""
    known, arrows = modules(), {}
    folder = {name: name if len(name.split(".")) < 3 else name.rpartition(".")[0] for name in known}
    for name, path in known.items():
        read = {n if n in known else n.rpartition(".")[0] for n in imports(path.read_text("utf-8"))}
        arrows.setdefault(folder[name], set()).update(folder[n] for n in read & known.keys())
    for name, below in arrows.items():
        below.discard(name)
    order = list(TopologicalSorter(arrows).static_order())  # a CycleError names the circle
    assert order.index("dipgo.schedule") < order.index("dipgo.execute") < order.index("benchmarks.runs")


def modules() -> dict[str, Path]:
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def test_no_modules_import_each_other():
    """Imports inside of functions count as well."""
    known = modules()
    reads: dict[str, set[str]] = {}
    for name, path in known.items():
        given = imports(path.read_text("utf-8"))
        reads[name] = {n if n in known else n.rpartition(".")[0] for n in given} & known.keys() - {name}

    def reachable(name: str) -> set[str]:
        seen, left = set(), [name]
        while left:
            for other in reads[left.pop()] - seen:
                seen.add(other)
                left.append(other)
        return seen

    assert [name for name in known if name in reachable(name)] == []


def test_a_wrong_arrow_would_be_seen():
    assert forbidden("dipgo", "def f():\n    from benchmarks.specs import record") == ["benchmarks.specs.record"]
    assert forbidden("baselines", "import tables.load") == ["tables.load"]
    assert forbidden("tables", "from benchmarks.runs import run") == ["benchmarks.runs.run"]
    assert forbidden("benchmarks/quality", "from benchmarks.supply import zoo") == ["benchmarks.supply.zoo"]
    assert not forbidden("tables", "from benchmarks.specs.record import Record\nimport tables.stats")
    assert room_of(Path("benchmarks/runs/run.py")) == "benchmarks/runs"
    assert room_of(Path("tables/claims/ledger.py")) == "tables"


def test_nothing_outside_dipgo_looks_into_its_rooms():
    """What the harness needs of the rooms is a public name of `dipgo`."""
    rooms = tuple(f"dipgo.{path.parent.name}." for path in (ROOT / "dipgo").glob("*/__init__.py"))
    outside = {name: path for name, path in modules().items() if not name.startswith("dipgo")}
    looked = {
        name: [n for n in imports(path.read_text("utf-8")) if n.startswith(rooms)] for name, path in outside.items()
    }
    assert rooms and {name: names for name, names in looked.items() if names} == {}


@pytest.mark.parametrize(
    "statement",
    ["import tables.__main__", "import benchmarks.specs.record, benchmarks.specs.suite", "import dipgo.errors"]
    + [
        "import dipgo.schedule",
        "import dipgo.execute.trace",
        "import dipgo.schedulers",
        "import dipgo.files, dipgo.registry",
        "import benchmarks.__main__",
    ],
)
def test_what_needs_no_tensors_loads_no_torch(statement):
    code = f"import sys; {statement}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
