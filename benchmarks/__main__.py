"""Measure the runs of a table (`run`), and what goes with that: say what a table needs here (`doctor`), download what
it lacks (`fetch`), tell whether pictures and scores are still what they were (`drift`), draw a few pictures of
records (`pictures`), and count MACs without weights (`macs`)."""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from math import inf
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.specs.profiles import DEFAULT, PROFILES, place
from benchmarks.specs.suite import load_suite, printed_runs, with_needs
from dipgo.errors import DipgoError, unknown
from dipgo.interrupts import run_and_exit
from dipgo.schedulers import SCHEDULERS

HERE = ROOT / "benchmarks"
SOME_ROWS_ABSENT = 3
"""The exit status where the suite is through, but the records of some rows only say why they are empty."""
LISTS = ("rows", "methods", "metrics", "models", "profiles", "prompts")


class _List(argparse.Action):
    """Prints names of one kind, and ends the command."""

    def __call__(self, parser: argparse.ArgumentParser, options: object, kind: Any, flag: Any = None) -> None:
        from benchmarks.commands.listing import names

        print("\n".join(names(kind)))
        parser.exit()


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status. A `DipgoError` becomes one line on the standard error."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    try:
        return COMMANDS[options.command](options)
    except (ValueError, OSError) as error:
        logging.getLogger(__name__).debug("traceback", exc_info=True)
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--version", action="version", version=f"dipgo {_version()}")
    parser.add_argument("--list", choices=LISTS, action=_List, help="print the names of a kind, one a line, and end")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure the runs of a suite; finished ones are re-used")
    run.add_argument("suite", help="name of a file in benchmarks/suites, such as table1, or a path to a .toml")
    _choose(run)
    run.add_argument("--row", action="append", default=[], metavar="ID", help="only this run and those it needs")
    run.add_argument("--printed", action="store_true", help="only the runs that the paper's table prints")
    run.add_argument("--limit", type=int, metavar="N", help="at most N pictures a prompt set, as a trial")
    run.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="another value of a field of all runs, such as steps=4 or params.train.steps=2, as a trial",
    )
    run.add_argument(
        "--dry-run", action="store_true", help="list the runs with what they cost and need; measure nothing"
    )
    run.add_argument("--fresh", action="store_true", help="forget finished runs and measure again")
    run.add_argument("--workspace", type=Path, default=ROOT / "runs", help="pictures and partial results")
    run.add_argument(
        "--records", type=Path, help="where records go; those of a trial or your own suite go to the workspace"
    )
    run.add_argument("--batch", type=int, help="pictures generated at once; changes no picture")
    run.add_argument("--workers", type=int, help="processes that generate and score side by side; 1 on a GPU, else 2")
    run.add_argument("--minutes", type=float, default=inf, help="time no row after so many minutes; default: no limit")
    run.add_argument(
        "--schedules", type=Path, metavar="DIR", help="take schedules from the records in DIR; train and search nothing"
    )
    doctor = commands.add_parser(
        "doctor", help="what a table needs here, what is present, and what would supply the rest"
    )
    doctor.add_argument("--table", required=True, help="number of a table, or name of a suite")
    _choose(doctor)
    fetch = commands.add_parser("fetch", help="download assets of the paper profile, at their pinned revisions")
    fetch.add_argument("names", nargs="+", metavar="NAME", help="as the doctor names them")
    drift = commands.add_parser("drift", help="whether the zoo's pictures and scores are still what they were")
    drift.add_argument("--update", action="store_true", help="renew what is compared with")
    drift.add_argument("--reason", metavar="TEXT", help="of an update, kept with it")
    drift.add_argument(
        "--records", nargs=2, type=Path, metavar="FILE", help="compare two records instead, by MLPerf's tolerances"
    )
    pictures = commands.add_parser("pictures", help="draw a few pictures of published records, for the report")
    pictures.add_argument("rows", nargs="*", metavar="ID", help="only these runs; default: all")
    pictures.add_argument("--count", type=int, default=3, metavar="N", help="pictures a record; default: 3")
    pictures.add_argument("--records", type=Path, default=ROOT / "tables" / "records", metavar="DIR")
    pictures.add_argument("--out", type=Path, default=ROOT / "runs" / "pictures", metavar="DIR", help="keeps them")
    macs = commands.add_parser("macs", help="count MACs of the paper's denoisers, without weights: all its tables")
    macs.add_argument("--model", help="only one run of this denoiser, such as sd15")
    macs.add_argument("--scheduler", default="ddim", choices=SCHEDULERS, help="of that run")
    macs.add_argument("--steps", type=int, default=50, help="of that run")
    macs.add_argument("--schedule", type=Path, metavar="FILE", help="of that run; default: everything is computed")
    macs.add_argument("--json", action="store_true", help="print that run's counts as one JSON object")
    return parser


def _choose(parser: argparse.ArgumentParser) -> None:
    told = "; ".join(f"{name}: {profile.about}" for name, profile in PROFILES.items())
    parser.add_argument("--profile", default=DEFAULT, help=f"{told}; default: {DEFAULT}")
    parser.add_argument(
        "--random-weights",
        action="store_const",
        dest="profile",
        const="random-weights",
        help="the same as --profile random-weights",
    )


def _version() -> str:
    try:
        return version("dipgo")
    except PackageNotFoundError:  # a checkout that is not installed
        return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]


def _suite(name: str) -> Path:
    """Return the file of a suite: one in benchmarks/suites by its name, or any by its path."""
    suites = {path.stem: path for path in (HERE / "suites").glob("*.toml")}
    path = Path(name) if name.endswith(".toml") else suites.get(name)
    if path is None:
        raise unknown("suite", name, suites)
    return path


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the fields that a trial sets, by name."""
    settings: dict[str, Any] = {} if options.limit is None else {"limit": options.limit}
    for text in options.set:
        name, equals, value = text.partition("=")
        if not equals:
            raise DipgoError(f"--set {text}: give it as FIELD=VALUE, such as steps=4")
        settings[name] = _value(text, value)
    return settings


def _value(text: str, value: str) -> Any:
    """Return what `--set` is given as a value: one of TOML, or a single word."""
    try:
        parsed = tomllib.loads(f"value = {value}")
    except (ValueError, RecursionError):
        if re.fullmatch(r"[A-Za-z][\w./-]*", value):
            return value
        parsed = {}
    if parsed.keys() != {"value"}:
        raise DipgoError(f'--set {text[:80]!r}: no value of TOML, such as 0.8, true, [1, 2] or "words"; write it so')
    return parsed["value"]


def _run(options: argparse.Namespace) -> int:
    path, settings = _suite(options.suite), _settings(options)
    for name in ("batch", "workers"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise DipgoError(f"--{name} is {value}; it must be at least 1")
    if not options.minutes > 0:
        raise DipgoError(f"--minutes is {options.minutes}; it must be more than 0")
    for name in ("workspace", "records"):
        folder = getattr(options, name)
        if folder and folder.exists() and not folder.is_dir():
            raise DipgoError(f"--{name}: {folder} is no folder; name one")
    # What is wrong with the suite, the settings or the rows is told before torch is loaded, which takes seconds.
    unread = load_suite(path, lambda row: "unread", options.profile, settings)
    chosen = options.row + (printed_runs(path, options.profile) if options.printed else [])
    with_needs(unread, chosen)
    from benchmarks.machine.shards import shards
    from benchmarks.runs.run import Suite
    from benchmarks.supply.profiles import source

    specs = load_suite(path, source(options.profile).revision, options.profile, settings)
    wanted = with_needs(specs, chosen or [spec.id for spec in specs])
    if options.schedules:
        from benchmarks.runs.published import with_schedules_of

        wanted = with_schedules_of(options.schedules, wanted)
    if options.dry_run:
        from benchmarks.runs.needs import listing, needs

        print(listing(needs(wanted, options.workspace)))
        return 0
    published = path.resolve().parent == HERE / "suites" and not settings
    usual = ROOT / "tables" / "records" if published else options.workspace / "records"
    records = options.records or place(options.profile, usual)
    workers = options.workers or (1 if shards().device.type == "cuda" else 2)
    suite = Suite(wanted, options.workspace, records, options.batch, workers, options.minutes)
    failed = suite.run(wanted, fresh=options.fresh)
    if shards().index == 0:  # of launched processes, the one that writes the records
        from benchmarks.runs.summary import summary

        print(summary([spec for spec in wanted if spec.id not in failed], records), end="")
    for name, reason in failed.items():
        print(f"error: {name}: {reason}", file=sys.stderr)
    return SOME_ROWS_ABSENT if failed else 0


def _doctor(options: argparse.Namespace) -> int:
    path = _suite(f"table{options.table}" if options.table.isdigit() else options.table)
    from benchmarks.commands.doctor import examine

    report, ready = examine(path, options.profile)
    print(report)
    return 0 if ready else 1


def _fetch(options: argparse.Namespace) -> int:
    from benchmarks.supply.fetch import fetch

    fetch(options.names)
    return 0


def _drift(options: argparse.Namespace) -> int:
    from benchmarks.drift import command  # it imports torch

    return command.main(options)


def _pictures(options: argparse.Namespace) -> int:
    from benchmarks.runs.gallery import Gallery  # it imports torch

    if options.count < 1:
        raise DipgoError(f"--count is {options.count}; it must be at least 1")
    if not list(options.records.glob("*.json")):
        raise DipgoError(f"{options.records}: no record; measure something first")
    sheets = Gallery(options.records, options.out, options.count).make(options.rows)
    print(f"{sheets} sheets of pictures in {options.out}")
    return 0


def _macs(options: argparse.Namespace) -> int:
    from benchmarks.commands import macs  # it imports torch

    if options.model is None:
        if options.schedule or options.json:
            raise DipgoError("--schedule and --json are of one run; name its --model")
        macs.count_tables(macs.load_cells())
        return 0
    counts = macs.count_run(options.model, options.scheduler, options.steps, options.schedule)
    if options.json:
        print(json.dumps(counts))
    else:
        print("\n".join(f"{name} {value}" for name, value in counts.items()))
    return 0


COMMANDS = {
    "run": _run,
    "doctor": _doctor,
    "fetch": _fetch,
    "drift": _drift,
    "pictures": _pictures,
    "macs": _macs,
}

if __name__ == "__main__":
    run_and_exit(main, "what is finished is kept; the same command goes on from there")
