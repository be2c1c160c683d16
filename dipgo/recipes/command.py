"""What the commands of `dipgo` do, with the words of its functions. Arguments are read in `dipgo.__main__`."""

from __future__ import annotations

import argparse
import shutil
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from dipgo.errors import DipgoError, first_line
from dipgo.files import parse_json, write_bytes
from dipgo.recipes.recipe import FILE, load_recipes
from dipgo.schedule import Schedule

PIXELS = 8  # of a gate's square in a picture
COLOURS = ((32, 96, 160), (232, 232, 232))  # computed, reused


def learn(options: argparse.Namespace) -> int:
    """Learn a recipe and write it into a folder."""
    prompts, folder = _prompts(options.prompts), Path(options.output)
    if folder.exists() and not folder.is_dir():
        raise DipgoError(f"{folder} is a file; give a folder for the recipe")
    keep = folder / ".dipgo-learning"
    from dipgo.recipes.learn import Settings
    from dipgo.recipes.learn import learn as learning

    Settings(options.budget, options.memory, options.seed)  # refuses what cannot be, before anything is loaded
    settings = {"component": options.component, "seed": options.seed, "memory": options.memory, "keep": keep}
    settings |= _arguments(options)
    recipe = learning(_pipeline(options), prompts, options.budget, **settings)
    recipe.save_pretrained(folder)
    shutil.rmtree(keep, ignore_errors=True)
    print(recipe)
    print(f"written: {folder / FILE}")
    return 0


def apply(options: argparse.Namespace) -> int:
    """Draw one picture by a recipe and write it."""
    recipes, output = load_recipes(options.recipe), Path(options.output)
    if not output.parent.is_dir():
        raise DipgoError(f"{output.parent} is no folder; make it first")
    from dipgo.recipes.accelerate import accelerate
    from dipgo.recipes.compare import learned_with
    from dipgo.recipes.learn import quiet
    from dipgo.recipes.record import draw

    arguments = learned_with(recipes[0], **{**_arguments(options), "output_type": "np"})
    pipe = _pipeline(options)
    with quiet(pipe), accelerate(pipe, recipes) as run:
        drawn = draw(pipe, options.prompt, options.seed, arguments)
    first = drawn
    while first.ndim > 3:  # of a batch, or of a video's frames
        first = first[0]
    _write_picture(output, (first.clip(0, 1) * 255).round().astype(np.uint8))
    print(run)
    return 0


def compare(options: argparse.Namespace) -> int:
    """Print what a recipe is worth beside other ways of drawing."""
    prompts, recipes = _prompts(options.prompts), load_recipes(options.recipe)
    from dipgo.recipes.compare import compare as comparing

    pipe = _pipeline(options)
    for recipe in recipes:
        print(comparing(pipe, recipe, prompts, seed=options.seed, **_arguments(options)))
    return 0


def show(options: argparse.Namespace) -> int:
    """Print recipes, and draw the map of their gates."""
    recipes = load_recipes(options.recipe)
    print("\n\n".join(map(str, recipes)))
    if options.png:
        _write_picture(Path(options.png), gate_map([recipe.schedule for recipe in recipes]))
    return 0


def check(options: argparse.Namespace) -> int:
    """Print for each recipe whether it fits a pipeline, and return 1 where none does."""
    recipes = load_recipes(options.recipe)
    from dipgo.recipes.accelerate import target_of

    pipe, fitting = _pipeline(options), 0
    for recipe in recipes:
        try:
            here = target_of(pipe, recipe.target.component)
            reason = recipe.target.misfit(here)
        except DipgoError as error:
            reason = str(error)
        name = f"{recipe.digest} ({recipe.target.component}, {recipe.schedule.calls} calls)"
        other = "" if reason or here.weights == recipe.target.weights else "; its weights differ, so look at the result"
        print(f"{name}: {f'does not fit: {reason}' if reason else f'fits{other}'}")
        fitting += not reason
    return 0 if fitting else 1


def drift(options: argparse.Namespace) -> int:
    """Compare a pipeline's pictures with the stored ones, or store them."""
    prompts, recipes = _prompts(options.prompts), load_recipes(options.recipe) if options.recipe else []
    from dipgo.recipes.accelerate import accelerate
    from dipgo.recipes.compare import learned_with
    from dipgo.recipes.drift import drift as drifting

    arguments = learned_with(recipes[0], **_arguments(options)) if recipes else _arguments(options)
    pipe = _pipeline(options)
    with accelerate(pipe, recipes) if recipes else nullcontext():
        found = drifting(pipe, prompts, options.store, seed=options.seed, **arguments)
    print(
        ", ".join(f"{name} {value:.2f}" if type(value) is float else f"{name} {value}" for name, value in found.items())
    )
    return 0


def gate_map(schedules: list[Schedule]) -> np.ndarray:
    """Return a picture [h, w, 3] of schedules' gates, one above the other: a row a site and a column a call, dark where
    it is computed."""
    wide = max(schedule.calls for schedule in schedules)
    rows = []
    for schedule in schedules:
        marks = np.full((len(schedule.sites) + 1, wide, 3), 255, dtype=np.uint8)
        marks[:-1, : schedule.calls] = np.array(COLOURS, dtype=np.uint8)[schedule.reuse.T.astype(int)]
        rows.append(marks)
    return np.concatenate(rows)[:-1].repeat(PIXELS, 0).repeat(PIXELS, 1)


def _write_picture(path: Path, pixels: np.ndarray) -> None:
    from io import BytesIO

    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(pixels.squeeze()).save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())


def _pipeline(options: argparse.Namespace) -> Any:
    """Load the pipeline of a folder or of the hub, without reading pickles, with the scheduler that was asked for."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # of libraries, about each other
    import diffusers
    import torch
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    if options.scheduler and not hasattr(diffusers, options.scheduler):
        raise DipgoError(f"diffusers has no scheduler {options.scheduler!r}")
    try:
        pipe = diffusers.DiffusionPipeline.from_pretrained(
            options.pipeline, use_safetensors=True, torch_dtype=getattr(torch, options.dtype)
        )
        if options.scheduler:
            pipe.scheduler = getattr(diffusers, options.scheduler).from_config(pipe.scheduler.config)
    except Exception as error:  # the loaders raise what they like
        raise DipgoError(f"{options.pipeline} is no pipeline that can be read: {first_line(error)}") from error
    return pipe.to(options.device)


def _arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Return the pipeline's arguments, as the command line gives them."""
    given = {"num_inference_steps": options.steps, "guidance_scale": options.guidance}
    found = {name: value for name, value in given.items() if value is not None}
    for text in options.set or ():
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise DipgoError(f"--set {text}: give NAME=VALUE, such as --set eta=0.5")
        try:
            found[name] = parse_json(value)
        except DipgoError:
            found[name] = value
    return found


def _prompts(path: Path) -> list[Any]:
    """Return the prompts of a text file, one a line, or of a JSON file, a list of texts or of tables of arguments."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DipgoError(f"{path}: {first_line(error)}; give a text file with one prompt a line") from None
    if Path(path).suffix == ".json":
        prompts = parse_json(text)
        if not isinstance(prompts, list):
            raise DipgoError(f"{path}: give a list of prompts")
    else:
        prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise DipgoError(f"{path} holds no prompts; write one a line")
    return prompts
