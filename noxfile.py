"""Sessions of the suite. They share one environment, so that torch is installed once.

nox -s reproduce-table1            measure Table 1 and render it; finished runs are re-used (so 2, 3, 4, 8)
nox -s reproduce-table1 -- --fresh measure everything again
nox -s reproduce-all               reproduce every table
nox -s reproduce-table1 -- --profile paper    the same on the paper's own models; --dry-run only lists what it takes,
                                   --random-weights needs no download, --limit 4 is a trial
nox -s doctor -- --profile paper --table 1    say what a table needs here and what would supply it
nox -s fetch -- sd15 parti         download assets of the paper profile
nox -s drift                       compare pictures and scores with stored ones; -- --update --reason TEXT renews them
nox -s gpu-pack                    on a GPU, in 8 minutes: seconds of the paper's models, with random weights
nox -s tests                       run the tests
nox -s lint                        check style
nox -s render                      render the tables and figures from their records, measuring nothing
nox -s macs                        count the MACs cells of the paper's tables on its own models, without weights
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import nox

nox.options.sessions = ["lint", "tests"]
nox.needs_version = ">=2024.4.15"

ROOT = Path(__file__).parent
ENVIRONMENT = ROOT / ".nox" / "suite"
GROUPS = ("suite", "tests", "lint")
TABLES = sorted(path.stem for path in (ROOT / "benchmarks" / "suites").glob("table*.toml"))
SOME_ROWS_ABSENT = 3  # `python -m benchmarks run` says so when records of some rows only hold a reason


def suite_environment(session: nox.Session) -> str:
    """The shared environment's python; made on first use and again when its requirements change."""
    python = ENVIRONMENT / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    project = nox.project.load_toml(ROOT / "pyproject.toml")
    wanted = repr((project["project"]["dependencies"], project["dependency-groups"]))
    stamp = ENVIRONMENT / "requirements"
    if not (python.exists() and stamp.exists() and stamp.read_text() == wanted):
        session.run(sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT), external=True)
        groups = [f"--group={ROOT / 'pyproject.toml'}:{group}" for group in GROUPS]
        session.run(str(python), "-m", "pip", "install", "--upgrade", "pip>=25.1", external=True)
        session.run(str(python), "-m", "pip", "install", "-e", str(ROOT), *groups, external=True)
        stamp.write_text(wanted)
    return str(python)


def run(session: nox.Session, *arguments: str, **options) -> None:
    """Run a module of the suite from the repository's root in the shared environment."""
    python = suite_environment(session)
    session.chdir(ROOT)
    session.run(python, "-m", *arguments, external=True, **options)


def reproduce(session: nox.Session, tables: list[str]) -> None:
    """Measure every run of the tables that is not finished, then render them, the claims and the figure. Runs that
    tables share happen once. A trial, with settings that are not the suite's, leaves its records and tables in
    `runs`."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--profile")
    parser.add_argument("--random-weights", dest="profile", action="store_const", const="random-weights")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--limit")
    parser.add_argument("--set", action="append")
    asked, _ = parser.parse_known_args(session.posargs)
    profile = ["--profile", asked.profile] if asked.profile else []
    trial = ["--records", "runs/records", "--out", "runs/tables"] if asked.limit or asked.set else []
    for table in tables:
        run(session, "benchmarks", "run", table, *session.posargs, success_codes=[0, SOME_ROWS_ABSENT])
        if not asked.dry_run:
            run(session, "tables", "render", table, *profile, *trial)
    if not (asked.dry_run or trial):
        run(session, "tables", "render", "claims", *([] if profile else ["pareto"]))


for name in TABLES:

    @nox.session(name=f"reproduce-{name}", venv_backend="none")
    def reproduce_one(session: nox.Session, name: str = name) -> None:
        reproduce(session, [name])


@nox.session(name="reproduce-all", venv_backend="none")
def reproduce_all(session: nox.Session) -> None:
    """Reproduce every table."""
    reproduce(session, TABLES)


@nox.session(venv_backend="none")
def render(session: nox.Session) -> None:
    """Render all tables and figures from their records; `-- --check` only compares."""
    run(session, "tables", "render", *session.posargs)


@nox.session(venv_backend="none")
def macs(session: nox.Session) -> None:
    """Count the MACs cells of the paper's tables on its own models, without weights, and render them."""
    run(session, "benchmarks", "macs")
    run(session, "tables", "render", "macs")


@nox.session(venv_backend="none")
def doctor(session: nox.Session) -> None:
    """Say what a table needs on this machine, what is there, and what would supply the rest."""
    run(session, "benchmarks", "doctor", *session.posargs)


@nox.session(venv_backend="none")
def fetch(session: nox.Session) -> None:
    """Download assets of the paper profile by their names."""
    run(session, "benchmarks", "fetch", *session.posargs)


@nox.session(venv_backend="none")
def drift(session: nox.Session) -> None:
    """Compare the zoo's pictures and scores with the stored ones."""
    run(session, "benchmarks", "drift", *session.posargs)


@nox.session(name="gpu-pack", venv_backend="none")
def gpu_pack(session: nox.Session) -> None:
    """Time the paper's models at full size, with random weights, on a GPU, and render what came out."""
    run(session, "benchmarks", "gpu-pack", *session.posargs, success_codes=[0, SOME_ROWS_ABSENT])
    run(session, "tables", "render", "gpu")


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """Run the tests."""
    run(session, "pytest", *session.posargs)


@nox.session(venv_backend="none")
def lint(session: nox.Session) -> None:
    """Check style and formatting."""
    run(session, "ruff", "check", ".")
    run(session, "ruff", "format", "--check", ".")
