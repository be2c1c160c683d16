"""`dipgo learn | apply | compare | show | check | drift`: recipes, and the authors' published gates as schedules.

Arguments are read before torch is loaded, so that help, version and the refusal of a misspelt argument take no time.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import NoReturn

from dipgo import __version__
from dipgo.errors import DipgoError, first_line
from dipgo.interrupts import run_and_exit

RELEASED = {"sd15": "SD15"}
"""The models that the authors published gates of, and the names of their families."""

RUN = ("steps", "guidance", "set")
PIPELINE = ("pipeline", "scheduler", "dtype", "device")
COMMANDS = {
    "learn": (
        "learn a recipe from a pipeline's own runs",
        (*PIPELINE, "prompts", "recipe to", "budget", "memory", "component", "seed", *RUN),
    ),
    "apply": ("draw a picture by a recipe", (*PIPELINE, "recipe", "prompt", "picture to", "seed", *RUN)),
    "compare": (
        "draw by a recipe and by what else the same work buys, and print MACs, seconds and PSNR",
        (*PIPELINE, "recipe", "prompts", "seed", *RUN),
    ),
    "show": ("print recipes and a map of their gates", ("recipe", "png")),
    "drift": (
        "store a pipeline's pictures once, and fail when they have changed",
        (*PIPELINE, "prompts", "store", "by recipe", "seed", *RUN),
    ),
    "check": ("say whether recipes fit a pipeline, and why not", (*PIPELINE, "recipe")),
}
"""What each command does, and the arguments that it takes."""
ARGUMENTS = {
    "pipeline": (("pipeline",), {"help": "a folder in the format of diffusers, or a repository of the hub"}),
    "recipe": (("recipe",), {"help": "a folder with a recipe, or a repository of the hub"}),
    "by recipe": (("--recipe",), {"metavar": "FOLDER", "help": "draw by this recipe"}),
    "store": (("--store",), {"required": True, "metavar": "FOLDER", "help": "where the pictures are stored"}),
    "prompts": (("--prompts",), {"type": Path, "required": True, "help": "a text file with one prompt a line"}),
    "prompt": (("--prompt",), {"required": True, "help": "what to draw"}),
    "recipe to": (("-o", "--output"), {"required": True, "metavar": "FOLDER", "help": "where the recipe goes"}),
    "picture to": (("-o", "--output"), {"required": True, "metavar": "PNG", "help": "where the picture goes"}),
    "png": (("--png",), {"metavar": "FILE", "help": "draw the map as a picture, too"}),
    "budget": (("--budget",), {"type": float, "default": 0.2, "help": "the share of the work that is done (0.2)"}),
    "memory": (("--memory",), {"type": int, "default": 3, "help": "how many outputs are combined (3)"}),
    "component": (
        ("--component",),
        {"help": "the denoiser's name in the pipeline, where it is no unet or transformer"},
    ),
    "seed": (("--seed",), {"type": int, "default": 0, "help": "decides the pictures' noise (0)"}),
    "scheduler": (("--scheduler",), {"metavar": "CLASS", "help": "a scheduler of diffusers instead of the pipeline's"}),
    "dtype": (("--dtype",), {"choices": ("float32", "float16", "bfloat16"), "default": "float32"}),
    "device": (("--device",), {"default": "cpu", "help": "such as cuda (cpu)"}),
    "steps": (("--steps",), {"type": int, "help": "the pipeline's num_inference_steps"}),
    "guidance": (("--guidance",), {"type": float, "help": "the pipeline's guidance_scale"}),
    "set": (("--set",), {"action": "append", "metavar": "NAME=VALUE", "help": "another argument of the pipeline"}),
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status; bad input ends in one line on the error stream."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options) or 0
    except (DipgoError, OSError) as error:
        print(f"error: {first_line(error)}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dipgo", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"dipgo {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (says, takes) in COMMANDS.items():
        command = commands.add_parser(name, help=says, description=says, allow_abbrev=False)
        for argument in takes:
            command.add_argument(*ARGUMENTS[argument][0], **ARGUMENTS[argument][1])
        command.set_defaults(run=partial(_run, name))
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


def _run(name: str, options: argparse.Namespace) -> int:
    from dipgo.recipes import command

    return getattr(command, name)(options)


def _import_released(options: argparse.Namespace) -> None:
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")  # of a library that compiles on import
    import torch

    from dipgo import Sampler, families
    from dipgo.released import import_released

    family = getattr(families, RELEASED[options.model])
    with torch.device("meta"):
        sites = family.sites(family.tiny())  # a small instance has the blocks of the published size
    import_released(options.file, sites, Sampler(options.scheduler, {}, options.steps)).save(options.output)


def command() -> NoReturn:
    """Run the command of the shell, whose Ctrl-C ends in one line."""
    run_and_exit(main, "nothing is half-written; the same command goes on with a learning")


if __name__ == "__main__":
    command()
