"""`python -m tables render [NAME ...]`: records into tables/out, or with --check a comparison with it.

A name is a table's, `claims` or `macs`.
"""

from __future__ import annotations

import argparse
import logging
import sys
from functools import partial
from itertools import zip_longest
from pathlib import Path

from benchmarks.record import write_text
from benchmarks.spec import BenchmarkError
from tables.ledger import LEDGER, render_claims
from tables.load import HERE, names
from tables.macs import MACS, render_macs
from tables.render import render

log = logging.getLogger("tables")

OTHERS = {LEDGER: render_claims, MACS: lambda records: render_macs()}
"""What is rendered besides the tables, by name."""


def first_difference(path: Path, text: str) -> str | None:
    """The first line where the file is not `text`, named; None where they are equal."""
    if not path.is_file():
        return f"{path}: missing"
    pairs = zip_longest(path.read_text(encoding="utf-8").split("\n"), text.split("\n"))
    for line, (there, rendered) in enumerate(pairs, 1):
        if there != rendered:
            return f"{path}:{line}: has {there!r}, the records give {rendered!r}"
    return None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tables")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("render", help="turn records into markdown and CSV")
    command.add_argument(
        "names", nargs="*", metavar="NAME", help="default: every table that has a spec, the claims and the MACs"
    )
    command.add_argument("--records", type=Path, default=HERE / "records", metavar="DIR")
    command.add_argument("--out", type=Path, default=HERE / "out", metavar="DIR")
    command.add_argument("--check", action="store_true", help="write nothing; exit 1 where out is stale")
    options = parser.parse_args(arguments)
    try:
        for name in options.names or [*names(), *OTHERS]:
            for file, text in OTHERS.get(name, partial(render, name))(options.records).items():
                path = options.out / file
                if not options.check:
                    write_text(path, text)
                    log.info("%s", path)
                elif difference := first_difference(path, text):
                    log.error("%s; run `python -m tables render %s`", difference, name)
                    return 1
    except BenchmarkError as error:
        log.error("%s", error)
        return 2
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    sys.exit(main())
