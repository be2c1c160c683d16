"""`python -m dipgo import-released FILE`: the authors' published gates as a schedule.

Arguments are read before torch is loaded, so that help, version and the refusal of a misspelt argument take no time.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

from dipgo import __version__
from dipgo.errors import DipgoError, first_line
from dipgo.interrupts import run_and_exit

RELEASED = {"sd15": "SD15"}
"""The models that the authors published gates of, and the names of their families."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status; bad input ends in one line on the error stream."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (DipgoError, OSError) as error:
        print(f"error: {first_line(error)}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dipgo", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"dipgo {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    released = commands.add_parser(
        "import-released", help="turn the authors' published gates into a schedule", allow_abbrev=False
    )
    released.add_argument("file", type=Path, help="their pickle; no code of it is run")
    released.add_argument("--model", required=True, choices=RELEASED)
    released.add_argument("--scheduler", required=True, choices=("ddim", "plms"), help="the gates' sampler")
    released.add_argument("--steps", type=int, default=50)
    released.add_argument("-o", "--output", type=Path, required=True, metavar="SCHEDULE", help="JSON to write")
    released.set_defaults(run=_import_released)
    return parser


def _import_released(options: argparse.Namespace) -> None:
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")  # of a library that compiles on import
    import torch

    from dipgo import Sampler, families
    from dipgo.released import import_released

    family = getattr(families, RELEASED[options.model])
    with torch.device("meta"):
        sites = family.sites(family.tiny())  # a small instance has the blocks of the published size
    import_released(options.file, sites, Sampler(options.scheduler, {}, options.steps)).save(options.output)


if __name__ == "__main__":
    run_and_exit(main, "nothing was written")
