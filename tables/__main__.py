"""`python -m tables render [TABLE ...] [claims]`: records into tables/out, or with --check a comparison with it."""

from __future__ import annotations

import argparse
import logging
import sys
from itertools import zip_longest
from pathlib import Path

from benchmarks.record import write_text
from benchmarks.spec import BenchmarkError
from tables.ledger import LEDGER, render_claims
from tables.load import HERE, names
from tables.render import render

log = logging.getLogger("tables")


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
        "tables", nargs="*", metavar="TABLE", help="default: every table that has a spec, and the claims"
    )
    command.add_argument("--records", type=Path, default=HERE / "records", metavar="DIR")
    command.add_argument("--out", type=Path, default=HERE / "out", metavar="DIR")
    command.add_argument("--check", action="store_true", help="write nothing; exit 1 where out is stale")
    options = parser.parse_args(arguments)
    try:
        for name in options.tables or [*names(), LEDGER]:
            files = render_claims(options.records) if name == LEDGER else render(name, options.records)
            for file, text in files.items():
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
