"""A recipe beside what else the same work buys: fewer steps of stock solvers, and outputs that are held."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import diffusers
import numpy as np
from tqdm import tqdm

from dipgo.errors import DipgoError, first_line
from dipgo.families import denoiser_of
from dipgo.recipes.accelerate import accelerate
from dipgo.recipes.fit import spacings
from dipgo.recipes.learn import STEPS, interval, quiet
from dipgo.recipes.recipe import Recipe
from dipgo.recipes.record import draw, psnr
from dipgo.sampling import picture_seeds
from dipgo.schedule import Schedule

SOLVERS = (
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
)
"""Stock solvers that few steps are drawn with where diffusers says that they can stand in for the pipeline's own."""


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

    The ways are the dense run, the recipe, its gates with the last values held, as many evenly spread calls held, and
    as many steps of the pipeline's own scheduler and of stock solvers that fit its model.

    pipe: the pipeline.
    recipe: one that fits it.
    prompts: the pictures, as `dipgo.learn` takes them. Take others than those that were learned from.
    seed: decides their noise.
    arguments: the pipeline's own; what is not given is as the recipe was learned with.

    Raises `DipgoError` where the recipe does not fit.
    """
    if isinstance(prompts, (str, Mapping)) or not len(prompts):
        raise DipgoError("prompts must be a list of at least one picture to compare on")
    arguments = learned_with(recipe) | arguments
    pictures = list(zip(prompts, picture_seeds(seed, range(len(prompts))), strict=True))
    drawing = _Drawing(pipe, recipe, pictures)
    with quiet(pipe), accelerate(pipe, recipe):
        pass  # refuses what does not fit before anything is drawn
    with quiet(pipe):
        rows = [drawing.row("dense", arguments)]
        for label, other in {"recipe": recipe, **_holds(recipe)}.items():
            rows.append(drawing.row(label, arguments, lambda other=other: accelerate(pipe, other)))
        if isinstance(arguments.get(STEPS), int):
            steps = max(1, round(arguments[STEPS] * recipe.computed_calls / recipe.schedule.calls))
            for label, scheduler in _solvers(pipe):
                fewer = {**arguments, STEPS: steps}
                rows.append(drawing.row(f"{steps} steps, {label}", fewer, lambda s=scheduler: _with(pipe, s)))
    return Comparison(len(pictures), rows)


def learned_with(recipe: Recipe) -> dict[str, Any]:
    """Return the pipeline's arguments that a recipe was learned with, as far as it says."""
    return dict(recipe.provenance.get("settings", {}).get("arguments", {}))


@dataclass(eq=False)
class _Drawing:
    pipe: Any
    recipe: Recipe
    pictures: Sequence[tuple[Any, int]]
    dense: Sequence[np.ndarray] = ()

    def row(
        self, label: str, arguments: Mapping[str, Any], context: Callable[[], AbstractContextManager] = nullcontext
    ) -> Row:
        """Draw all pictures inside of a context, and return what came of it. The first row is the dense run's."""
        drawn, form = [], self.recipe.form
        dense_call = self.recipe.macs["full"][0] / (self.recipe.schedule.calls * form.calls_per_step)
        try:
            with context() as run, self._counted() as calls:
                started = perf_counter()
                for prompt, seed in tqdm(self.pictures, desc=label, disable=None, leave=False):
                    drawn.append(draw(self.pipe, prompt, seed, arguments))
                seconds = (perf_counter() - started) / len(drawn)
            reported = sum(spent["macs"] for spent in run.report().values()) if run is not None else 0.0
        except Exception as error:  # a solver that another pipeline's model cannot use raises what it likes
            if not self.dense or label == "recipe":
                raise
            return Row(label, 0.0, 0.0, {}, f"not drawn: {first_line(error):.60}")
        spent = (reported or len(calls) * dense_call) / len(drawn)
        if not self.dense:
            self.dense = drawn
            return Row(label, spent, seconds, {})
        quality = interval([psnr(*pair) for pair in zip(drawn, self.dense, strict=True)])
        return Row(label, spent, seconds, quality)

    @contextmanager
    def _counted(self) -> Iterator[list[None]]:
        calls: list[None] = []
        denoiser = denoiser_of(self.pipe, self.recipe.target.component)
        handle = denoiser.register_forward_hook(lambda *_: calls.append(None))
        try:
            yield calls
        finally:
            handle.remove()


def _holds(recipe: Recipe) -> dict[str, Recipe]:
    """Return the recipe without its coefficients, and with evenly spread calls where whole calls are reused."""
    schedule = replace(recipe.schedule, coefficients=None)
    found = {"its calls, held": replace(recipe, schedule=schedule)} if recipe.schedule.coefficients is not None else {}
    if len(schedule.sites) == 1 and recipe.computed_calls < schedule.calls:
        even = next(spacings(recipe.computed_calls, schedule.calls))
        spread = replace(Schedule.skip_calls(schedule.sites, schedule.calls, even), timesteps=schedule.timesteps)
        found["evenly spread calls, held"] = replace(recipe, schedule=spread)
    return found


def _solvers(pipe: Any) -> Iterator[tuple[str, Any]]:
    """Yield the pipeline's own scheduler and stock ones that can stand in for it, each with its name."""
    own = pipe.scheduler
    yield type(own).__name__.removesuffix("Scheduler"), own
    fitting = {kind.__name__ for kind in getattr(own, "compatibles", ())}
    for name in SOLVERS:
        if name in fitting and name != type(own).__name__:
            yield name.removesuffix("Scheduler"), getattr(diffusers, name).from_config(own.config)


@contextmanager
def _with(pipe: Any, scheduler: Any) -> Iterator[None]:
    """In here a pipeline has another scheduler."""
    own = pipe.scheduler
    pipe.scheduler = scheduler
    try:
        yield
    finally:
        pipe.scheduler = own
