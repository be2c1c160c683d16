"""`python -m tables render [NAME ...]` renders records into tables/out. With --check it compares and writes nothing.

A NAME is the name of a table, `pareto`, `frontier`, `claims` or `macs`. The files of the embedded profile lie in the
folders of records and tables themselves, those of another profile in a subfolder of its name. Without NAMEs, files for
which another profile or the GPU has no record are left out.

`python -m tables report` writes a folder of pages to look at, which open from the disk.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator
from functools import partial
from itertools import zip_longest
from pathlib import Path

from benchmarks import ROOT
from benchmarks.specs.files import write_bytes
from benchmarks.specs.profiles import DEFAULT, PROFILES, place
from dipgo.errors import DipgoError
from dipgo.interrupts import run_and_exit

log = logging.getLogger("tables")

HERE = ROOT / "tables"


def first_difference(path: Path, content: str | bytes) -> str | None:
    """Return a message that names the first line where a file differs from `content`; None if they are equal.

    Pictures are equal if their stamps are, since their bytes change with the drawing library.
    """
    if not path.is_file():
        return f"{path}: missing"
    if isinstance(content, bytes):
        from tables.figures.pareto import stamp

        same = stamp(path.read_bytes()) == stamp(content)
        return None if same else f"{path}: not drawn from these records"
    pairs = zip_longest(path.read_text(encoding="utf-8").split("\n"), content.split("\n"))
    for line, (there, rendered) in enumerate(pairs, 1):
        if there != rendered:
            return f"{path}:{line}: has {there!r}, the records give {rendered!r}"
    return None


def _rendered(options: argparse.Namespace) -> Iterator[tuple[str, Path, str | bytes]]:
    """Yield the name, the path and the content of every file that was asked for."""
    from tables.claims.ledger import LEDGER, render_claims  # not before the arguments are read: they load much
    from tables.figures.pareto import PARETO, render_pareto
    from tables.frontier import FRONTIER, render_frontier
    from tables.load import names
    from tables.macs import MACS, render_macs
    from tables.render import render

    of_no_profile = {
        LEDGER: lambda records, profile: render_claims(records),
        MACS: lambda records, profile: render_macs(),
    }
    renderers = {PARETO: render_pareto, FRONTIER: render_frontier, **of_no_profile}
    every = not options.names and options.profile is None
    asked = [
        (name, profile)
        for profile in (PROFILES if every else [options.profile or DEFAULT])
        for name in options.names or [*names(), PARETO, FRONTIER]
        if name not in of_no_profile
    ]
    asked += [(name, DEFAULT) for name in of_no_profile if every or name in options.names]
    for name, profile in asked:
        files = renderers.get(name, partial(render, name))(options.records, profile)
        if options.names and not files:
            raise DipgoError(f"{place(profile, options.records)}: no record of {name}; measure it first")
        for file, content in files.items():
            yield name, place(profile, options.out) / file, content


def _report(options: argparse.Namespace) -> None:
    """Write the report, or print the ids of the rows whose pictures it shows."""
    from tables.report.pages import Sources, shown_runs, write  # not before it is asked for: it loads much

    if options.rows:
        print("\n".join(shown_runs(options.profile)))
        return
    records = place(options.profile, options.records)
    if not any(records.glob("*.json")):
        raise DipgoError(f"{records}: no record to report; measure a table first")
    log.info("%s", write(Sources(options.records, options.profile, options.pictures), options.out))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tables")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("render", help="turn records into markdown, CSV and figures")
    command.add_argument("names", nargs="*", metavar="NAME", help="default: all tables and pages")
    command.add_argument("--profile", choices=list(PROFILES), help="default: embedded; without names, all profiles")
    command.add_argument("--records", type=Path, default=HERE / "records", metavar="DIR")
    command.add_argument("--out", type=Path, default=HERE / "out", metavar="DIR")
    command.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file is stale")
    report = commands.add_parser("report", help="write pages to look at: tables that sort, charts, schedules, pictures")
    report.add_argument("--profile", choices=list(PROFILES), default=DEFAULT, help=f"default: {DEFAULT}")
    report.add_argument("--records", type=Path, default=HERE / "records", metavar="DIR")
    report.add_argument("--out", type=Path, default=ROOT / "build" / "report", metavar="DIR")
    report.add_argument("--pictures", type=Path, default=ROOT / "runs" / "pictures", metavar="DIR")
    report.add_argument("--rows", action="store_true", help="only print the ids of the rows whose pictures it shows")
    options = parser.parse_args(arguments)
    try:
        if options.command == "report":
            _report(options)
            return 0
        for name, path, content in _rendered(options):
            if not options.check:
                write_bytes(path, content.encode("utf-8") if isinstance(content, str) else content)
                log.info("%s", path)
            elif difference := first_difference(path, content):
                log.error("%s; run `python -m tables render %s`", difference, name)
                return 1
    except DipgoError as error:
        log.error("%s", error)
        return 2
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    run_and_exit(main, "the files that were rendered are whole; the same command renders the rest")
