"""`python -m benchmarks run SUITE`: measure the runs of a table and write their records.
`python -m benchmarks doctor`: what a table needs here. `python -m benchmarks fetch`: download what it lacks.
`python -m benchmarks drift`: whether pictures and scores are still what they were.
`python -m benchmarks gpu-pack`: on a GPU, the seconds of the paper's models at full size, with random weights.
`python -m benchmarks macs`: count the MACs of the paper's tables, or of any schedule, without weights."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tomllib
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.specs.run import PROFILES
from benchmarks.specs.suite import load_suite, read_suite
from dipgo.errors import DipgoError, unknown
from dipgo.schedulers import SCHEDULERS

HERE = ROOT / "benchmarks"
SOME_ROWS_ABSENT = 3  # exit status: the suite is through, but records of some rows only say why they are empty


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure the runs of a suite; finished ones are re-used")
    run.add_argument("suite", help="name of a file in benchmarks/suites, such as table1, or a path to a .toml")
    _choose(run)
    run.add_argument("--row", action="append", default=[], metavar="ID", help="only this run and those it needs")
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
    run.add_argument("--records", type=Path, help="where records go; a trial's go to the workspace")
    run.add_argument("--batch", type=int, help="pictures generated at once; changes no picture")
    run.add_argument("--workers", type=int, help="processes that generate and score side by side; 1 on a GPU, else 2")
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
    pack = commands.add_parser("gpu-pack", help="what only a GPU shows of the paper's tables, with random weights")
    pack.add_argument("--minutes", type=float, default=8, help="nothing begins later; default: 8")
    pack.add_argument("--records", type=Path, default=ROOT / "tables" / "records" / "gpu", help="where records go")
    macs = commands.add_parser("macs", help="count MACs of the paper's denoisers, without weights: all its tables")
    macs.add_argument("--model", help="only one run of this denoiser, such as sd15")
    macs.add_argument("--scheduler", default="ddim", choices=SCHEDULERS, help="of that run")
    macs.add_argument("--steps", type=int, default=50, help="of that run")
    macs.add_argument("--schedule", type=Path, metavar="FILE", help="of that run; default: everything is computed")
    macs.add_argument("--json", action="store_true", help="print that run's counts as one JSON object")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    try:
        return COMMANDS[options.command](options)
    except (ValueError, OSError) as error:
        logging.getLogger(__name__).debug("traceback", exc_info=True)
        print(f"error: {error}", file=sys.stderr)
        return 1


def _choose(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", default=PROFILES[0], help="embedded (the zoo's models) or paper")
    parser.add_argument(
        "--random-weights",
        action="store_const",
        dest="profile",
        const="random-weights",
        help="the paper profile without its weights and data: only time and memory are measured",
    )


def _suite(name: str) -> Path:
    suites = {path.stem: path for path in (HERE / "suites").glob("*.toml")}
    path = Path(name) if name.endswith(".toml") else suites.get(name)
    if path is None:
        raise unknown("suite", name, suites)
    return path


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """The fields that a trial sets."""
    settings: dict[str, Any] = {} if options.limit is None else {"limit": options.limit}
    for text in options.set:
        name, equals, value = text.partition("=")
        if not equals:
            raise DipgoError(f"--set {text}: give it as FIELD=VALUE, such as steps=4")
        try:
            settings[name] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            settings[name] = value
    return settings


def _run(options: argparse.Namespace) -> int:
    path, settings = _suite(options.suite), _settings(options)
    for name in ("batch", "workers"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise DipgoError(f"--{name} is {value}; it must be at least 1")
    for name in ("workspace", "records"):
        folder = getattr(options, name)
        if folder and folder.exists() and not folder.is_dir():
            raise DipgoError(f"--{name}: {folder} is no folder; name one")
    read_suite(path, options.profile)
    from benchmarks.machine.shards import shards
    from benchmarks.runs.run import Suite, with_needs  # after the cheap checks: it imports torch
    from benchmarks.supply.profiles import source

    specs = load_suite(path, source(options.profile).revision, options.profile, settings)
    wanted = with_needs(specs, options.row or [spec.id for spec in specs])
    if options.dry_run:
        from benchmarks.runs.needs import listing, needs

        print(listing(needs(wanted, options.workspace)))
        return 0
    published = ROOT / "tables" / "records"
    usual = options.workspace / "records" if settings else published
    records = options.records or (usual if options.profile == PROFILES[0] else usual / options.profile)
    workers = options.workers or (1 if shards().device.type == "cuda" else 2)
    failed = Suite(specs, options.workspace, records, options.batch, workers).run(wanted, fresh=options.fresh)
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


def _gpu_pack(options: argparse.Namespace) -> int:
    from benchmarks.commands.gpu_pack import read_pack, run  # it imports torch

    absent = run(read_pack(), options.minutes, ROOT / "tables" / "records", options.records)
    for name, reason in absent.items():
        print(f"error: {name}: {reason}", file=sys.stderr)
    return SOME_ROWS_ABSENT if absent else 0


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
    "gpu-pack": _gpu_pack,
    "macs": _macs,
}

if __name__ == "__main__":
    sys.exit(main())
