"""The sessions share one environment, so that torch is installed once. `nox -l` says what every session does.

nox -s reproduce-table1                        measure and render Table 1; finished runs are kept
nox -s reproduce-table1 -- --fresh             measure everything again
nox -s reproduce-table1 -- --printed           measure only the rows that the paper prints
nox -s reproduce-table1 -- --limit 4           try it out with 4 pictures a run; the results stay in `runs`
nox -s reproduce-table1 -- --profile paper     use the paper's models; --dry-run only lists what this needs
nox -s reproduce-table1 -- --random-weights    use the paper's models without their weights; nothing is downloaded
nox -s doctor -- --profile paper --table 1     list what a table needs and what would supply it
nox -s fetch -- sd15 parti                     download assets of the paper profile
nox -s drift -- --update --reason TEXT         store new pictures and scores
nox -s render -- --check                       only say whether a rendered file is stale
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import nox

nox.options.sessions = ["lint", "tests"]
nox.needs_version = ">=2024.4.15"

ROOT = Path(__file__).parent
ENVIRONMENT = ROOT / ".nox" / "suite"
GROUPS = ("suite", "tests", "lint", "report", "docs")
TABLES = sorted(path.stem for path in (ROOT / "benchmarks" / "suites").glob("table*.toml"))
SOME_ROWS_ABSENT = 3  # the exit status of `python -m benchmarks run` if some values could not be measured


def suite_environment(session: nox.Session) -> str:
    """The Python of the shared environment, which is made on first use and again when its requirements change."""
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


def run(session: nox.Session, *arguments: str, **options) -> str | bool | None:
    """Runs a module of the suite at the root of the repository, in the shared environment. Returns what it printed, if
    it is `silent`."""
    python = suite_environment(session)
    session.chdir(ROOT)
    return session.run(python, "-m", *arguments, external=True, **options)


def reproduce(session: nox.Session, tables: list[str]) -> None:
    """Measures the unfinished runs of the tables, then renders the tables, the claims and the figure.

    A run that several tables share is measured once. A trial, which is a run with --limit or --set, leaves its records
    and tables in `runs`.
    """
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

    def reproduce_one(session: nox.Session, name: str = name) -> None:
        reproduce(session, [name])

    title = nox.project.load_toml(ROOT / "tables" / "specs" / f"{name}.toml")["title"]
    reproduce_one.__doc__ = f"Measure and render {title}."
    nox.session(reproduce_one, name=f"reproduce-{name}", venv_backend="none")


@nox.session(name="reproduce-frontier", venv_backend="none")
def reproduce_frontier(session: nox.Session) -> None:
    """Measure and render the frontier: all contestants of each model at equal MACs."""
    reproduce(session, ["frontier"])


@nox.session(name="reproduce-all", venv_backend="none")
def reproduce_all(session: nox.Session) -> None:
    """Measure and render Tables 1 to 8."""
    reproduce(session, TABLES)


@nox.session(venv_backend="none")
def render(session: nox.Session) -> None:
    """Render all tables and figures from their records. `-- --check` only says whether one is stale."""
    run(session, "tables", "render", *session.posargs)


@nox.session(venv_backend="none")
def report(session: nox.Session) -> None:
    """Write pages to look at into build/report. The first call draws their pictures, which takes some minutes."""
    rows = run(session, "tables", "report", "--rows", silent=True, stderr=sys.stderr)
    run(session, "benchmarks", "pictures", *rows.split())
    run(session, "tables", "report", *session.posargs)


@nox.session(venv_backend="none")
def macs(session: nox.Session) -> None:
    """Count the MACs of the paper's models, without weights, and render them beside the printed ones."""
    run(session, "benchmarks", "macs")
    run(session, "tables", "render", "macs")


@nox.session(venv_backend="none")
def doctor(session: nox.Session) -> None:
    """List what a table needs, what is there, and what would supply the rest."""
    run(session, "benchmarks", "doctor", *session.posargs)


@nox.session(venv_backend="none")
def fetch(session: nox.Session) -> None:
    """Download assets of the paper profile by their names."""
    run(session, "benchmarks", "fetch", *session.posargs)


@nox.session(venv_backend="none")
def drift(session: nox.Session) -> None:
    """Compare the zoo's pictures and scores with the stored ones. `-- --update --reason TEXT` stores new ones."""
    run(session, "benchmarks", "drift", *session.posargs)


PAGES = ("README.md", "docs/*.md", "tables/out/*", "baselines/*.py", "benchmarks/zoo/README.md", "benchmarks/zoo/*.png")
"""What the documentation shows, and what its pages link to."""


@nox.session(venv_backend="none")
def docs(session: nox.Session) -> None:
    """Build the documentation into build/site; a broken link is an error."""
    pages = ROOT / "build" / "pages"
    shutil.rmtree(pages, ignore_errors=True)
    for path in (path for pattern in PAGES for path in ROOT.glob(pattern) if path.is_file()):
        copy = pages / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    run(session, "mkdocs", "build", "--strict", "--config-file", "docs/mkdocs.yml")


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """Run the tests, one process a core; the tests of a file stay together, since they share what is costly."""
    run(session, "pytest", "--numprocesses=auto", "--dist=loadfile", *session.posargs)


@nox.session(venv_backend="none")
def lint(session: nox.Session) -> None:
    """Check the style and the format of the code."""
    run(session, "ruff", "check", ".")
    run(session, "ruff", "format", "--check", ".")
