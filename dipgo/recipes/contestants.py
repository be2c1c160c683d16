"""What a recipe is compared with: other ways of drawing for its MACs. A new one is one entry of `CONTESTANTS`.

Few steps of a solver may cost a little more where it makes extra calls, as PLMS does; tuned ones never do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import diffusers
import numpy as np
from tqdm import tqdm

from dipgo.errors import DipgoError
from dipgo.families import denoiser_of
from dipgo.families.unet import layers
from dipgo.families.watch import costs_of, find_sites
from dipgo.graph import WHOLE_CALL
from dipgo.recipes.accelerate import accelerate, recipe_of
from dipgo.recipes.fit import spacings
from dipgo.recipes.learn import STEPS, first_inputs
from dipgo.recipes.recipe import Recipe
from dipgo.recipes.record import draw, psnr
from dipgo.registry import Registry
from dipgo.rules import Rule, Taylor, ruled
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
SETTINGS = (
    {"timestep_spacing": "leading"},
    {"timestep_spacing": "trailing"},
    {"timestep_spacing": "linspace"},
    {"use_karras_sigmas": True},
)
"""What tuned few steps try of each solver, as far as it has such a setting, besides its own settings."""
TUNED_ON = 4  # pictures at most
TUNING_SEED = 2_000_003  # apart from the seeds of the pictures that are compared, and of those that were learned from
ROUNDING = 1e-6  # relative, of sums of MACs


@dataclass(frozen=True)
class Way:
    """One way of drawing."""

    label: str
    arguments: Mapping[str, Any]
    """The pipeline's own."""
    context: Callable[[], AbstractContextManager] = nullcontext
    """Makes the context to draw in."""


@dataclass(frozen=True, eq=False)
class Contest:
    """What the contestants compete over."""

    pipe: Any
    recipe: Recipe
    """Its MACs are what each contestant may spend."""
    prompts: Sequence[Any]
    """The pictures, as `dipgo.learn` takes them."""
    arguments: Mapping[str, Any]
    """The pipeline's own, for a dense run."""
    seed: int

    @property
    def share(self) -> float:
        """The share of a dense run's MACs that the recipe spends."""
        dense, spent = self.recipe.macs["full"]
        return spent / dense

    @property
    def calls(self) -> int:
        """As many whole calls as the recipe's MACs buy."""
        return max(1, round(self.share * self.recipe.schedule.calls))

    @property
    def steps(self) -> int:
        """As many steps as the recipe's MACs buy. Raises `DipgoError` where nobody knows how many a dense run has."""
        dense = self.arguments.get(STEPS)
        if not isinstance(dense, int):
            raise DipgoError(f"give {STEPS} to compare with fewer steps")
        return max(1, round(self.share * dense))

    @property
    def denoiser(self) -> Any:
        return denoiser_of(self.pipe, self.recipe.target.component)

    @cached_property
    def inputs(self) -> Mapping[str, Any]:
        """The inputs of the denoiser's first call."""
        return first_inputs(self.pipe, self.recipe.target.component, self.prompts[0], self.arguments)

    @cached_property
    def tuning(self) -> list[tuple[Any, int, np.ndarray]]:
        """The prompt, seed and dense picture of what contestants are tuned on: the prompts with other noise."""
        prompts = self.prompts[:TUNED_ON]
        seeds = picture_seeds(TUNING_SEED + self.seed, range(len(prompts)))
        pairs = zip(prompts, seeds, strict=True)
        return [(prompt, seed, draw(self.pipe, prompt, seed, self.arguments)) for prompt, seed in pairs]

    @property
    def dense_call(self) -> float:
        """The MACs of one call of the denoiser in which everything is computed."""
        return self.recipe.macs["full"][0] / (self.recipe.schedule.calls * self.recipe.form.calls_per_step)

    @contextmanager
    def counted(self) -> Iterator[list[None]]:
        """In here each call of the denoiser adds an entry to the list."""
        calls: list[None] = []
        handle = self.denoiser.register_forward_hook(lambda *_: calls.append(None))
        try:
            yield calls
        finally:
            handle.remove()

    def score(self, way: Way) -> float:
        """Return the mean PSNR in dB of the pictures to tune on. Raises `DipgoError` for dense calls that cost more
        than the recipe."""
        tuning = self.tuning  # drawn before calls are counted
        with way.context(), self.counted() as calls:
            found = float(np.mean([psnr(draw(self.pipe, *one, way.arguments), dense) for *one, dense in tuning]))
        if len(calls) * self.dense_call > self.recipe.macs["full"][1] * len(tuning) * (1 + ROUNDING):
            raise DipgoError(f"{way.label} costs more than the recipe")
        return found

    def by(self, label: str, recipe: Recipe) -> Way:
        """Return the way of drawing by a recipe."""
        return Way(label, self.arguments, lambda: accelerate(self.pipe, recipe))

    def fewer(self, label: str, scheduler: Any) -> Way:
        """Return the way of drawing with as many steps of a scheduler as the recipe's MACs buy."""
        return Way(label, {**self.arguments, STEPS: self.steps}, lambda: _with(self.pipe, scheduler))

    def recipes(self, sites: Sequence[str], reuses: Iterable[np.ndarray], rule: Rule | None = None) -> Iterator[Recipe]:
        """Yield the recipes over other sites that spend no more MACs than the one that is compared.

        sites: the same for all.
        reuses: bool [calls, sites] of each.
        rule: how reused values are made; None holds the last one.
        """
        costs, timesteps = costs_of(self.denoiser, sites, self.inputs), self.recipe.schedule.timesteps
        for reuse in reuses:
            schedule = Schedule(tuple(sites), reuse, timesteps=timesteps)
            schedule = schedule if rule is None else ruled(rule, costs.graph, schedule)
            made = recipe_of(self.pipe, self.recipe.target.component, self.recipe.form, costs, schedule)
            if made.macs["full"][1] <= self.recipe.macs["full"][1] * (1 + ROUNDING):
                yield made


def _recipe(contest: Contest) -> Iterator[Way]:
    yield contest.by("recipe", contest.recipe)


def _held(contest: Contest) -> Iterator[Way]:
    schedule = contest.recipe.schedule
    if schedule.coefficients is not None:
        held = replace(contest.recipe, schedule=replace(schedule, coefficients=None))
        yield contest.by("its calls, held", held)


def _spread(contest: Contest) -> Iterator[Way]:
    """Evenly spread calls are computed. The others give the last output, or continue it as TaylorSeer does."""
    calls = contest.recipe.schedule.calls
    if contest.calls == calls:
        return
    reuse = np.ones((calls, 1), dtype=bool)
    reuse[next(spacings(contest.calls, calls))] = False
    for label, rule in (("held", None), ("Taylor series of order 1", Taylor(1))):
        for recipe in contest.recipes((WHOLE_CALL,), [reuse], rule):
            yield contest.by(f"evenly spread calls, {label}", recipe)


def _deepcache(contest: Contest) -> Iterator[Way]:
    """A U-Net runs in full in every n-th call, and only its outermost layers run in the others. The MACs decide n."""
    unet = contest.denoiser
    if not hasattr(unet, "down_blocks") or not hasattr(unet, "up_blocks"):
        return
    last = f"up_blocks.{len(unet.up_blocks) - 1}"
    cut = layers(unet, last)
    sites = [site for block in find_sites(unet, contest.inputs) for site in (cut if block == last else (block,))]
    depth = len(unet.up_blocks[-1].resnets) - 1
    outermost = [site in (f"{last}.resnets.{depth}", f"{last}.attentions.{depth}") for site in sites]
    calls = contest.recipe.schedule.calls
    every = range(2, calls + 1)
    reuses = (np.outer(np.arange(calls) % n > 0, np.logical_not(outermost)) for n in every)
    found = next(contest.recipes(sites, reuses), None)
    if found is None:
        raise DipgoError(f"costs more than {contest.share:.1%} of the MACs, however rarely all of it runs")
    interval = int(np.flatnonzero(~found.schedule.reuse.any(axis=1))[1:2].sum()) or calls
    yield contest.by(f"DeepCache, interval {interval}", found)


def _few_steps(contest: Contest) -> Iterator[Way]:
    for label, scheduler in _solvers(contest.pipe):
        yield contest.fewer(f"{contest.steps} steps, {label}", scheduler)


def _tuned_steps(contest: Contest) -> Iterator[Way]:
    """The best of the solvers with several settings each, by PSNR on the prompts with other noise."""
    ways = []
    for label, own in _solvers(contest.pipe):
        label = f"{contest.steps} steps, tuned: {label}"
        ways.append(contest.fewer(label, own))
        for setting in SETTINGS:
            ((name, value),) = setting.items()
            if own.config.get(name, value) != value:
                changed = type(own).from_config(own.config, **setting)
                ways.append(contest.fewer(f"{label}, {name}={value}", changed))
    scores = []
    for way in tqdm(ways, desc="tuned few steps", disable=None, leave=False):
        try:
            scores.append(contest.score(way))
        except Exception:  # it costs too much, or a solver that the model cannot be used with raises what it likes
            scores.append(-np.inf)
    if max(scores) == -np.inf:
        raise DipgoError(f"none of {len(ways)} configurations draws with this pipeline at the recipe's MACs")
    yield ways[int(np.argmax(scores))]


CONTESTANTS: Registry[Callable[[Contest], Iterable[Way]]] = Registry(
    "contestant",
    {
        "recipe": _recipe,
        "held": _held,
        "spread": _spread,
        "DeepCache": _deepcache,
        "few steps": _few_steps,
        "tuned few steps": _tuned_steps,
    },
)
"""What `compare` draws beside the dense run, in this order. Each yields its ways, none where it does not apply, and
raises `DipgoError` to say why it cannot take part."""


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
