"""Use a recipe around a stock pipeline: `accelerate` checks what it was made for, and tells what really ran."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from dipgo.costs import CostModel, Costs
from dipgo.errors import DipgoError, PartialTrajectory
from dipgo.execute.gating import gated
from dipgo.execute.hooks import around
from dipgo.execute.run import ROUNDING, TIMESTEPS, Clock
from dipgo.execute.trace import Outcome
from dipgo.families import denoiser_of
from dipgo.graph import BlockGraph, Stream, named_inputs
from dipgo.recipes.recipe import Recipe, RunForm, Target, load_recipes
from dipgo.schedule import Schedule

log = logging.getLogger(__name__)

SAMPLED = 256  # values of each weight that its digest looks at


def component_of(pipe: Any, component: str | None = None) -> str:
    """Return the name under which a pipeline holds its denoiser: that which was given, or "unet" or "transformer".

    Raises `DipgoError` where it has no such module.
    """
    denoiser = denoiser_of(pipe, component)
    return component or next(name for name in ("unet", "transformer") if getattr(pipe, name, None) is denoiser)


def target_of(pipe: Any, component: str) -> Target:
    """Return the identity of a pipeline around the denoiser of that name."""
    denoiser = denoiser_of(pipe, component)
    scheduler = getattr(pipe, "scheduler", None)
    config = _settings(denoiser)
    if not config:  # no model of diffusers: the shapes of its weights stand for its configuration
        shapes = [(name, tuple(weight.shape)) for name, weight in denoiser.state_dict().items()]
        config = {"weights": hashlib.sha256(repr(shapes).encode()).hexdigest()[:16]}
    return Target(
        type(pipe).__name__,
        component,
        type(denoiser).__name__,
        config,
        weights_digest(denoiser),
        "" if scheduler is None else type(scheduler).__name__,
        _settings(scheduler),
    )


def _settings(part: Any) -> dict[str, Any]:
    """Return the configuration of a model or a scheduler as plain JSON values, without where it came from."""
    config = getattr(part, "config", None) or {}
    public = {name: value for name, value in dict(config).items() if not name.startswith("_")}
    return json.loads(json.dumps(public, sort_keys=True, default=repr))


def weights_digest(module: nn.Module) -> str:
    """Return 16 hex digits that change with a module's weights: of up to 256 values of each, evenly spaced."""
    digest = hashlib.sha256()
    for name, weight in sorted(module.state_dict().items()):
        if isinstance(weight, torch.Tensor) and not weight.is_meta:
            flat = weight.detach().flatten()
            values = flat[:: max(1, len(flat) // SAMPLED)].cpu().float().numpy()
            digest.update(f"{name} {tuple(weight.shape)}".encode() + values.tobytes())
    return digest.hexdigest()[:16]


class Reader:
    """Reads the arguments of a denoiser's calls."""

    def __init__(self, denoiser: nn.Module) -> None:
        self.denoiser, self.clock = denoiser, Clock()

    def __call__(self, args: tuple, kwargs: Mapping[str, Any]) -> tuple[float, torch.Tensor]:
        """Return the timestep of a call with these arguments and its sample. Raises `DipgoError` where it has none."""
        inputs = named_inputs(self.denoiser, args, kwargs)
        timestep = next((inputs[name] for name in TIMESTEPS if inputs.get(name) is not None), None)
        sample = [leaf for leaf in tree_leaves(list(inputs.values())[:1]) if isinstance(leaf, torch.Tensor)]
        if timestep is None or not sample:
            raise DipgoError(
                f"{type(self.denoiser).__name__} was called without a sample first or without a timestep, which must "
                f"be an argument named {', '.join(TIMESTEPS)}"
            )
        return self.clock.read(timestep), sample[0]


def grid_of(pipe: Any) -> tuple[float, ...]:
    """Return all timesteps that the pipeline's scheduler is set to now; empty where it has no such list."""
    timesteps = getattr(getattr(pipe, "scheduler", None), "timesteps", None)
    return () if timesteps is None else tuple(np.asarray(torch.as_tensor(timesteps).cpu(), dtype=float).tolist())


def branches_of(pipe: Any, sample: torch.Tensor) -> int | None:
    """Return how many guidance branches a call's batch holds, or None where nobody can tell.

    A pipeline that says whether it guides is believed where the rows bear it out: both halves see one latent.
    """
    half = len(sample) // 2
    alike = len(sample) % 2 == 0 and torch.equal(sample[:half, :1], sample[half:, :1])
    guided = getattr(pipe, "do_classifier_free_guidance", None)
    return 2 if alike and guided is not False else 1


class Accelerated:
    """What `accelerate` yields: what was spent so far. `print` shows it beside the recipes in use."""

    def __init__(self, gates: Sequence[_Gate]) -> None:
        self.gates = gates

    @property
    def recipes(self) -> list[Recipe]:
        """The recipe that each denoiser ran last."""
        return [gate.used for gate in self.gates if gate.used is not None]

    def report(self) -> dict[str, dict[str, float]]:
        """Return what each denoiser spent, by its name in the pipeline.

        `runs`, `calls` and `calls_run` (those in which a site was computed), `sites_run` of `sites` in those runs,
        `macs` and `macs_dense` (all matrix products), `seconds` in the denoiser, and `seconds_run` from a run's first
        call to the end of its last one. Runs that were broken off do not count.
        """
        return {gate.component: dict(gate.spent) for gate in self.gates}

    def __str__(self) -> str:
        lines = []
        for gate in self.gates:
            now = gate.spent
            lines.append(
                f"{gate.component}: {now['runs']} runs; {now['calls_run']} of {now['calls']} calls and "
                f"{now['sites_run']} of {now['sites']} sites ran; {now['macs'] / 1e9:.4g} G of "
                f"{now['macs_dense'] / 1e9:.4g} G MACs; {now['seconds']:.2f} s in the denoiser"
            )
        return "\n".join([*lines, *map(str, self.recipes)])


class _Gate:
    """The gates of one denoiser. At the first call of each run it chooses the recipe that fits the run."""

    def __init__(self, pipe: Any, component: str, recipes: Sequence[Recipe]) -> None:
        self.pipe, self.component, self.recipes = pipe, component, recipes
        self.denoiser = denoiser_of(pipe, component)
        self.read = Reader(self.denoiser)
        self.recipe: Recipe | None = None  # whose gates are on
        self.used: Recipe | None = None  # of the last run that began
        self.place, self.chosen = 0, False  # calls of this run so far; whether its recipe was chosen just now
        self.pictures = 1
        self.trace: Any = None
        self.gates, self.outside = ExitStack(), ExitStack()
        self.began = 0.0
        counts = dict.fromkeys(("runs", "calls", "calls_run", "sites", "sites_run"), 0)
        self.spent = counts | dict.fromkeys(("macs", "macs_dense", "seconds", "seconds_run"), 0.0)
        self.seconds = 0.0

    @contextmanager
    def on(self) -> Iterator[None]:
        self.outside.enter_context(around(self.denoiser, self))
        try:
            yield
        finally:
            self.outside.close()
            self._drop()

    def __call__(self, module: nn.Module, forward: Any, /, *args: Any, **kwargs: Any) -> Any:
        """The hook on the denoiser, outside of its gates."""
        if not self.chosen:
            timestep, sample = self.read(args, kwargs)
            if self._begins(timestep):
                self._choose(timestep, sample)
                self.chosen = True
                return module(*args, **kwargs)  # comes here again, around the recipe's gates
        self.chosen, started = False, perf_counter()
        if self.place == 0:
            self.began, self.seconds = started, 0.0
        try:
            output = forward(*args, **kwargs)
        except BaseException:
            self.place = 0
            raise
        self.seconds += perf_counter() - started
        self.place += 1
        if self.place == self.recipe.schedule.calls * self.recipe.form.calls_per_step:
            self._count()
            self.place = 0
        return output

    def _begins(self, timestep: float) -> bool:
        """Whether a call begins a run: none is under way, or the last one was broken off."""
        if self.recipe is None or self.place == 0:
            return True
        expected = self.recipe.schedule.timesteps[self.place // self.recipe.form.calls_per_step]
        firsts = [recipe.schedule.timesteps[0] for recipe in self.recipes]
        return not _near(timestep, expected) and any(_near(timestep, first) for first in firsts)

    def _choose(self, timestep: float, sample: torch.Tensor) -> None:
        """Put the gates of the recipe on that fits the run which begins here. Raises `DipgoError` where none does."""
        grid, rows, reasons = grid_of(self.pipe), branches_of(self.pipe, sample), []
        for recipe in self.recipes:
            form, first = recipe.form, recipe.schedule.timesteps[0]
            reason = form.misfit(grid, form.branches if form.calls_per_step > 1 else rows)
            if reason is None and not _near(timestep, first):
                reason = f"the recipe was made for a first call at timestep {first:g}, but this one is at {timestep:g}"
            if reason is None:
                return self._enter(recipe, sample)
            reasons.append(reason)
        others = f" (and {len(reasons) - 1} more recipes do not fit)" if len(reasons) > 1 else ""
        raise DipgoError(f"{reasons[0]}{others}; draw as it was made for, or learn another")

    def _enter(self, recipe: Recipe, sample: torch.Tensor) -> None:
        form = recipe.form
        self.pictures, self.place = len(sample) // (form.branches if form.calls_per_step == 1 else 1), 0
        if recipe is self.recipe:
            return  # its gates are on, and see for themselves that another run begins
        if tuple(sample.shape[1:]) != form.latent:
            made, now = list(form.latent), list(sample.shape[1:])
            log.warning("the recipe was learned on samples of shape %s, but this run has %s", made, now)
        self.outside.close()
        self._drop()
        try:
            gates = gated(self.denoiser, graph_of(recipe), recipe.schedule, calls_per_step=form.calls_per_step)
            self.trace = self.gates.enter_context(gates)
        finally:
            self.outside.enter_context(around(self.denoiser, self))
        self.recipe = self.used = recipe

    def _count(self) -> None:
        """Add the run that has just ended to what was spent."""
        recipe, outcomes = self.recipe, self.trace.outcomes
        dense, spent = recipe.macs.get("full", (0.0, 0.0))
        computed = outcomes == Outcome.COMPUTED
        ran = {"runs": 1, "calls": len(outcomes), "calls_run": int(computed.any(axis=1).sum())}
        ran |= {"sites": outcomes.size, "sites_run": int(computed.sum()), "macs": spent * self.pictures}
        ran |= {"macs_dense": dense * self.pictures, "seconds": self.seconds}
        ran["seconds_run"] = perf_counter() - self.began
        self.spent = {name: value + ran[name] for name, value in self.spent.items()}

    def _drop(self) -> None:
        """Take the gates off, also in the middle of a run, whose picture is the caller's."""
        self.recipe, self.place = None, 0
        try:
            self.gates.close()
        except PartialTrajectory as error:
            log.warning("%s", error)


@contextmanager
def accelerate(pipe: Any, recipe: Recipe | Path | str | Sequence[Recipe]) -> Iterator[Accelerated]:
    """Draw by a recipe for as long as the context lasts: the pipeline's own call computes what the schedule says.

    pipe: a pipeline of diffusers, or any callable that holds its denoiser and scheduler as attributes.
    recipe: a recipe, several, or the folder or repository of the hub that holds them. Each run takes the one that was
        made for its timesteps.

    Raises `DipgoError` in one line that names both sides where a recipe was made for another pipeline, denoiser,
    configuration or scheduler; and at the first call of a run that none was made for. Other weights only warn.
    """
    recipes = [recipe] if isinstance(recipe, Recipe) else load_recipes(recipe) if _is_place(recipe) else list(recipe)
    if not recipes:
        raise DipgoError("there is no recipe to draw by; give one, or the folder of one")
    by_component: dict[str, list[Recipe]] = {}
    for each in recipes:
        by_component.setdefault(each.target.component, []).append(each)
    gates = []
    for component, those in by_component.items():
        here = target_of(pipe, component)
        fit = [each for each in those if each.target.misfit(here) is None]
        if not fit:
            raise DipgoError(f"{those[0].target.misfit(here)}; learn a recipe for this pipeline")
        if fit[0].target.weights != here.weights:
            made, now = fit[0].target.weights, here.weights
            log.warning("the recipe was learned with other weights of %s (%s, here %s)", component, made, now)
        gates.append(_Gate(pipe, component, fit))
    with ExitStack() as stack:
        for gate in gates:
            stack.enter_context(gate.on())
        yield Accelerated(gates)


def _is_place(recipe: Any) -> bool:
    return isinstance(recipe, (str, Path))


def recipe_of(pipe: Any, component: str, form: RunForm, costs: CostModel, schedule: Schedule, **known: Any) -> Recipe:
    """Return the recipe of a schedule.

    pipe: the pipeline.
    component: the denoiser's name in it.
    form: what the calls of its runs look like.
    costs: graph and MACs of the schedule's sites, as `dipgo.costs_of` gives them.
    schedule: has the timestep of each call.
    known: further fields of the recipe.

    Raises `DipgoError` where the schedule has no timesteps, or is for other sites.
    """
    graph = costs.graph
    execution = graph.execute(schedule)
    calls = {"full": form.calls_per_step, "paper": costs.paper_branches * form.calls_per_step / form.branches}
    macs = {}
    for name, count in calls.items():
        counted: Costs = getattr(costs, name)
        spent = float(counted.per_call(execution).sum())
        macs[name] = (count * schedule.calls * counted.dense, count * spent)
    flow = {"reads": [sorted(read) for read in graph.reads], "output": sorted(graph.output_reads)}
    if any(graph.streams):
        flow["streams"] = [[list(stream) for stream in streams] for streams in graph.streams]
    return Recipe(
        target_of(pipe, component), form, schedule, {**flow, "bypassed": graph.bypassed}, **{"macs": macs, **known}
    )


def graph_of(recipe: Recipe) -> BlockGraph:
    """Return the block graph that a recipe's costs and schedule are over."""
    graph = recipe.graph
    return BlockGraph(
        recipe.schedule.sites,
        tuple(frozenset(read) for read in graph["reads"]),
        frozenset(graph["output"]),
        graph["bypassed"],
        tuple(tuple(Stream(*stream) for stream in streams) for streams in graph.get("streams", ())),
    )


def _near(one: float, other: float) -> bool:
    return math.isnan(one) or math.isclose(one, other, rel_tol=ROUNDING)
