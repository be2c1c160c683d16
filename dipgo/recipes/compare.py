"""A recipe beside what else the same work buys: fewer steps of stock solvers, and outputs that are held."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
from tqdm import tqdm

from dipgo.errors import DipgoError, first_line
from dipgo.recipes.accelerate import accelerate
from dipgo.recipes.contestants import CONTESTANTS, Contest, Way
from dipgo.recipes.learn import interval, quiet, worth
from dipgo.recipes.recipe import Recipe
from dipgo.recipes.record import draw, psnr
from dipgo.sampling import picture_seeds


@dataclass(frozen=True)
class Row:
    """What one way of drawing gave."""

    label: str
    macs: float
    """All matrix products of a picture's calls of the denoiser."""
    seconds: float
    """For a picture, the whole pipeline included."""
    quality: Mapping[str, Any]
    """The mean `psnr` to the dense run in dB and its interval; empty for the dense run itself."""
    reason: str = ""
    """Why there are no numbers."""


@dataclass(frozen=True)
class Comparison:
    """The ways of drawing that were compared, the dense run first. `print` shows a table."""

    pictures: int
    rows: Sequence[Row]

    def __str__(self) -> str:
        from tabulate import tabulate

        lines = []
        for row in self.rows:
            q = row.quality
            text = f"{q['psnr']:.2f}" if q else row.reason or "-"
            bounds = f"{q['low']:.2f} to {q['high']:.2f}" if "low" in q else ""
            spent = ["", ""] if row.reason else [f"{row.macs / 1e9:.4g}", f"{row.seconds:.3g}"]
            lines.append([row.label, *spent, text, bounds])
        heads = [f"{self.pictures} pictures", "GMACs", "s a picture", "PSNR in dB", "95 % interval"]
        return tabulate(lines, heads, disable_numparse=True, colalign=("left", *["right"] * 4))


def compare(pipe: Any, recipe: Recipe, prompts: Sequence[Any], *, seed: int = 0, **arguments: Any) -> Comparison:
    """Draw the same pictures in several ways, and return their MACs, seconds and PSNR to the dense run.

    The ways are the dense run, the recipe, and what else its MACs buy (`dipgo.recipes.contestants.CONTESTANTS`).

    pipe: the pipeline.
    recipe: one that fits it.
    prompts: the pictures, as `dipgo.learn` takes them. Take others than those that were learned from.
    seed: decides their noise.
    arguments: the pipeline's own; what is not given is as the recipe was learned with.

    Raises `DipgoError` where the recipe does not fit. A way that cannot be drawn has a row that says why.
    """
    pictures = _pictures(prompts, seed)
    contest = Contest(pipe, recipe, prompts, learned_with(recipe, **arguments), seed)
    with quiet(pipe), accelerate(pipe, recipe):
        pass  # refuses what does not fit before anything is drawn
    with quiet(pipe):
        drawing = _Drawing(contest, pictures)
        rows = [drawing.row(Way("dense", contest.arguments), needed=True)]
        for name, contestant in CONTESTANTS.items():
            rows += drawing.rows(name, contestant(contest))
    return Comparison(len(pictures), rows)


def measured(pipe: Any, recipe: Recipe, prompts: Sequence[Any], *, seed: int = 0, **arguments: Any) -> Recipe:
    """Return the recipe with its quality on these pictures: the PSNR to the dense run, and that of fewer steps.

    pipe: the pipeline.
    recipe: one that fits it and says with which arguments to draw, such as one that `Recipe.retimed` has made.
    prompts: the pictures, as `dipgo.learn` takes them. Take others than those that were learned from.
    seed: decides their noise.
    arguments: the pipeline's own; what is not given is as the recipe was learned with.

    Raises `DipgoError` where the recipe does not fit. Warns where fewer steps give as much.
    """
    arguments, pictures = learned_with(recipe, **arguments), _pictures(prompts, seed)
    with quiet(pipe):
        with accelerate(pipe, recipe):
            ours = [draw(pipe, *picture, arguments) for picture in pictures]
        dense = [draw(pipe, *picture, arguments) for picture in pictures]
        found = worth(pipe, pictures, arguments, (dense, ours), recipe.computed_calls)
    return replace(recipe, quality={**recipe.quality, **found})


def _pictures(prompts: Sequence[Any], seed: int) -> list[tuple[Any, int]]:
    """Return the prompt and the seed of each picture."""
    if isinstance(prompts, (str, Mapping)) or not len(prompts):
        raise DipgoError("prompts must be a list of at least one picture to draw")
    return list(zip(prompts, picture_seeds(seed, range(len(prompts))), strict=True))


def learned_with(recipe: Recipe, **given: Any) -> dict[str, Any]:
    """Return the pipeline's arguments that a recipe was learned with, as far as it says; those that are given win.

    Raises `DipgoError` where it was learned with others that it cannot hold, such as tensors, and they are not given.
    """
    settings = recipe.provenance.get("settings", {})
    if missing := [name for name in settings.get("other_arguments", ()) if name not in given]:
        raise DipgoError(f"the recipe was learned with {', '.join(missing)}, which it does not hold; give them again")
    return {**settings.get("arguments", {}), **given}


@dataclass(eq=False)
class _Drawing:
    contest: Contest
    pictures: Sequence[tuple[Any, int]]
    dense: Sequence[np.ndarray] = ()

    def rows(self, name: str, ways: Iterable[Way]) -> Iterator[Row]:
        """Yield the rows of a contestant, given its name. What fails has a row with the reason, apart from the recipe,
        whose error the caller gets."""
        try:
            for way in ways:
                yield self.row(way, needed=name == "recipe")
        except DipgoError as error:
            if name == "recipe":
                raise
            yield _undrawn(name, error)

    def row(self, way: Way, needed: bool = False) -> Row:
        """Draw all pictures in one way, and return what came of it. The first row is the dense run's. Where `needed`
        is false, a way that cannot be drawn gives a row with the reason."""
        drawn = []
        try:
            with way.context() as run, self.contest.counted() as calls:
                started = perf_counter()
                for prompt, seed in tqdm(self.pictures, desc=way.label, disable=None, leave=False):
                    drawn.append(draw(self.contest.pipe, prompt, seed, way.arguments))
                seconds = (perf_counter() - started) / len(drawn)
        except Exception as error:  # a solver that another pipeline's model cannot use raises what it likes
            if needed:
                raise
            return _undrawn(way.label, error)
        reported = sum(spent["macs"] for spent in run.report().values()) if run is not None else 0.0
        spent = (reported or len(calls) * self.contest.dense_call) / len(drawn)
        if not self.dense:
            self.dense = drawn
            return Row(way.label, spent, seconds, {})
        quality = interval([psnr(*pair) for pair in zip(drawn, self.dense, strict=True)])
        return Row(way.label, spent, seconds, quality)


def _undrawn(label: str, error: Exception) -> Row:
    return Row(label, 0.0, 0.0, {}, f"not drawn: {first_line(error):.60}")
