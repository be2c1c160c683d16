"""`python -m benchmarks run SUITE`: measure the runs of a table and write their records.
`python -m benchmarks macs`: count the MACs of the paper's tables, or of any schedule, without weights."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

from benchmarks.macs import count_tables, load_cells
from benchmarks.spec import SCHEDULERS, load_suite, unknown

HERE = Path(__file__).parent
ROOT = HERE.parent
SOME_ROWS_ABSENT = 3  # exit status: the suite is through, but records of some rows only say why they are empty


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure the runs of a suite; finished ones are re-used")
    run.add_argument("suite", help="name of a file in benchmarks/suites, such as table1, or a path to a .toml")
    run.add_argument("--row", action="append", default=[], metavar="ID", help="only this run and those it needs")
    run.add_argument("--fresh", action="store_true", help="forget finished runs and measure again")
    run.add_argument("--workspace", type=Path, default=ROOT / "runs", help="pictures and partial results")
    run.add_argument("--records", type=Path, default=ROOT / "tables" / "records", help="where records go")
    run.add_argument("--batch", type=int, default=100, help="pictures generated at once; changes no picture")
    run.add_argument("--workers", type=int, default=2, help="processes that generate and score side by side")
    macs = commands.add_parser("macs", help="count MACs of the paper's denoisers, without weights: all its tables")
    macs.add_argument("--model", help="only one run of this denoiser, such as sd15")
    macs.add_argument("--scheduler", default="ddim", choices=SCHEDULERS, help="of that run")
    macs.add_argument("--steps", type=int, default=50, help="of that run")
    macs.add_argument("--schedule", type=Path, metavar="FILE", help="of that run; default: everything is computed")
    macs.add_argument("--json", action="store_true", help="print that run's counts as one JSON object")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    try:
        return {"run": _run, "macs": _macs}[options.command](options)
    except (ValueError, OSError) as error:
        logging.getLogger(__name__).debug("traceback", exc_info=True)
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    suites = {path.stem: path for path in (HERE / "suites").glob("*.toml")}
    path = Path(options.suite) if options.suite.endswith(".toml") else suites.get(options.suite)
    if path is None:
        raise unknown("suite", options.suite, suites)
    for name in ("batch", "workers"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} is {getattr(options, name)}; it must be at least 1")
    from benchmarks.run import Suite, check_rows, revisions  # after the cheap checks: it imports torch

    specs = load_suite(path, revisions())
    check_rows(specs, options.row)
    suite = Suite(specs, options.workspace, options.records, options.batch, options.workers)
    failed = suite.run(options.row or [spec.id for spec in specs], fresh=options.fresh)
    for name, reason in failed.items():
        print(f"error: {name}: {reason}", file=sys.stderr)
    return SOME_ROWS_ABSENT if failed else 0


def _macs(options: argparse.Namespace) -> int:
    if options.model is None:
        if options.schedule or options.json:
            raise ValueError("--schedule and --json are of one run; name its --model")
        count_tables(load_cells())
        return 0
    from benchmarks.paper_models import count_run  # it imports torch

    counts = count_run(options.model, options.scheduler, options.steps, options.schedule)
    if options.json:
        print(json.dumps(counts))
    else:
        print("\n".join(f"{name} {value}" for name, value in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
