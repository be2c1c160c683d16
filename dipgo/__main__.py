"""`python -m dipgo import-released FILE`: the authors' published gates as a schedule."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from dipgo.errors import DipgoError
from dipgo.families import SD15
from dipgo.released import import_released
from dipgo.sampling import Sampler

RELEASED = {"sd15": SD15}  # models that the authors published gates of


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dipgo")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("import-released", help="turn the authors' published gates into a schedule")
    command.add_argument("file", type=Path, help="their pickle; no code of it is run")
    command.add_argument("--model", required=True, choices=RELEASED)
    command.add_argument("--scheduler", required=True, choices=("ddim", "plms"), help="the gates' sampler")
    command.add_argument("--steps", type=int, default=50)
    command.add_argument("-o", "--output", type=Path, required=True, metavar="SCHEDULE", help="JSON to write")
    options = parser.parse_args(arguments)
    family = RELEASED[options.model]
    with torch.device("meta"):
        sites = family.sites(family.tiny())  # a small instance has the blocks of the published size
    try:
        import_released(options.file, sites, Sampler(options.scheduler, {}, options.steps)).save(options.output)
    except (DipgoError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
