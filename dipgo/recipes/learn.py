"""Learn a recipe from a pipeline's own runs: no training loop, and any scheduler, guidance and denoiser."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import diffusers
import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save
from tqdm import tqdm

from dipgo.costs import CostModel
from dipgo.errors import DipgoError, first_line
from dipgo.execute.gating import gated
from dipgo.families import denoiser_of
from dipgo.families.watch import capture, costs_of
from dipgo.files import write_bytes
from dipgo.graph import WHOLE_CALL
from dipgo.recipes.accelerate import component_of, recipe_of, target_of
from dipgo.recipes.fit import fit, spacings
from dipgo.recipes.recipe import Recipe
from dipgo.recipes.record import Recorded, draw, psnr, record
from dipgo.sampling import picture_seeds
from dipgo.schedule import Schedule

log = logging.getLogger(__name__)

STEPS = "num_inference_steps"
HELD_BACK = 4  # one picture in so many is not learned from, and tells the quality
ARRAYS = ("timesteps", "outputs", "guidance", "moved", "picture")  # of a recorded run
PASSES = 10  # fits at most; each needs one run of each picture
NOISE_SEED = 1_000_003  # apart from the seeds of pictures that are drawn later


@dataclass(frozen=True)
class Settings:
    """How a recipe is learned."""

    budget: float = 0.2
    """The share of the calls that are computed."""
    memory: int = 3
    """How many of the last outputs a reused call combines."""
    seed: int = 0
    """Decides the pictures' noise."""

    def __post_init__(self) -> None:
        if not 0 < self.budget < 1:
            raise DipgoError(f"budget is {self.budget!r}; it is the share that is computed, above 0 and below 1")
        if self.memory < 1:
            raise DipgoError(f"memory is {self.memory!r}; it must be at least 1")

    def computed(self, calls: int) -> int:
        """Return how many of a run's calls the budget buys. Raises `DipgoError` where it buys all of them."""
        count = max(1, round(self.budget * calls))
        if count >= calls:
            raise DipgoError(
                f"a budget of {self.budget:g} computes all of the run's {calls} calls, so there is nothing to learn; "
                "lower the budget, or draw with more steps"
            )
        return count


def learn(
    pipe: Any,
    prompts: Sequence[Any],
    budget: float = 0.2,
    *,
    component: str | None = None,
    seed: int = 0,
    memory: int = 3,
    keep: Path | str | None = None,
    **arguments: Any,
) -> Recipe:
    """Return a recipe that draws with `budget` of the denoiser's work, learned from the pipeline's own runs.

    pipe: a pipeline of diffusers, or any callable that holds its denoiser as an attribute.
    prompts: what to learn from, 8 to 32 pictures: texts, or whatever the pipeline takes first. A mapping holds the
        arguments of one picture, such as `{"prompt": ..., "image": ...}`. Every fourth is held back to tell the
        quality.
    budget: the share of the calls that are computed. Each other call gives a combination of the last outputs.
    component: the denoiser's name in the pipeline; a unet or a transformer is found without it.
    seed: decides the pictures' noise. The same seed gives the same recipe.
    memory: how many of the last outputs are combined.
    keep: a folder that keeps the runs while the learning lasts, so that an interrupted one goes on. Remove it
        afterwards.
    arguments: the pipeline's own, such as `num_inference_steps` and `guidance_scale`; the recipe is for such runs.

    Raises `DipgoError` where there is nothing to learn. Warns where what was learned is no better than fewer steps.
    """
    settings, started = Settings(budget, memory, seed), perf_counter()
    if isinstance(prompts, (str, Mapping)) or not len(prompts):
        raise DipgoError("prompts must be a list of at least one picture to learn from; 8 to 32 are good")
    if "generator" in arguments:
        raise DipgoError("learn(...) makes the generators, so that it can draw the same again; give seed=... instead")
    learner = _Learner(pipe, component_of(pipe, component), settings, arguments, _Kept.at(keep))
    with quiet(pipe):
        return learner.learn(prompts, started)


@dataclass(eq=False)
class _Learner:
    """A learning that is under way."""

    pipe: Any
    component: str
    settings: Settings
    arguments: Mapping[str, Any]
    kept: _Kept

    def learn(self, prompts: Sequence[Any], started: float) -> Recipe:
        self.target = target_of(self.pipe, self.component)
        pictures = list(zip(prompts, picture_seeds(NOISE_SEED + self.settings.seed, range(len(prompts))), strict=True))
        held_back = [place for place in range(len(pictures)) if place % HELD_BACK == HELD_BACK - 1]
        lessons = [picture for place, picture in enumerate(pictures) if place not in held_back]
        scored = [pictures[place] for place in held_back] or pictures
        dense = self.runs(lessons, "dense runs")
        first, self.calls_per_step = dense[0], dense[0].calls_per_step
        count = self.settings.computed(len(first.timesteps))
        inputs = first_inputs(self.pipe, self.component, prompts[0], self.arguments)
        costs = costs_of(denoiser_of(self.pipe, self.component), (WHOLE_CALL,), inputs)
        schedule = self.best(lessons, dense, count, costs)
        quality = self.quality(scored, schedule, costs, count)
        stored = {name: value for name, value in self.arguments.items() if _is_plain(value)}
        others = sorted(self.arguments.keys() - stored)
        stored = json.loads(json.dumps(stored))
        provenance = {
            "method": "recorded runs",
            "settings": {**asdict(self.settings), "arguments": stored, "other_arguments": others},
            "seed": self.settings.seed,
            "prompts": digest_of(list(prompts)),
            "versions": {package.__name__: package.__version__ for package in (torch, diffusers)},
            "device": str(next(denoiser_of(self.pipe, self.component).parameters()).device),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(perf_counter() - started, 3),
        }
        known = {"rule": "recorded", "quality": quality, "provenance": provenance}
        return recipe_of(self.pipe, self.component, first.form, costs, schedule, **known)

    def best(self, lessons: Sequence, dense: Sequence[Recorded], count: int, costs: CostModel) -> Schedule:
        """Return the best schedule of several spacings, whose coefficients are fitted again to what its runs made."""
        candidates, memory = {}, self.settings.memory
        for computed in map(tuple, spacings(count, len(dense[0].timesteps))):
            if computed not in candidates:
                schedule = _schedule(dense[0], computed, fit(dense, dense, computed, memory))
                own = self.runs(lessons, f"spacing {len(candidates) + 1}", schedule, costs)
                candidates[computed] = (_loss(own, dense), schedule, own)
        computed = min(candidates, key=lambda each: candidates[each][0])
        loss, schedule, own = candidates[computed]
        held = replace(schedule, coefficients=None)
        if (reached := _loss(self.runs(lessons, "held", held, costs), dense)) < loss:
            loss, schedule = reached, held  # a fit of few calls that differ much may be worse than none
        for number in range(min(PASSES, count)):
            tried = _schedule(dense[0], computed, fit(dense, own, computed, memory))
            own = self.runs(lessons, f"fit {number + 1}", tried, costs)
            if (reached := _loss(own, dense)) < loss:
                loss, schedule = reached, tried
        return schedule

    def runs(
        self, pictures: Sequence, what: str, schedule: Schedule | None = None, costs: CostModel | None = None
    ) -> list[Recorded]:
        """Return the runs of some pictures, densely or by a schedule, as far as they are kept from before."""
        denoiser, found = denoiser_of(self.pipe, self.component), []
        for prompt, seed in tqdm(pictures, desc=what, disable=None, leave=False):
            gates = nullcontext()
            if schedule is not None:
                gates = gated(denoiser, costs.graph, schedule, calls_per_step=self.calls_per_step)

            def make(prompt: Any = prompt, seed: int = seed, gates: Any = gates) -> Recorded:
                with gates:
                    return record(self.pipe, self.component, prompt, seed, self.arguments)

            identity = [asdict(self.target), dict(self.arguments), prompt, seed, schedule and schedule.digest]
            found.append(self.kept.run(digest_of(identity), make))
            if not np.array_equal(found[0].timesteps, found[-1].timesteps):
                raise DipgoError("these pictures are drawn at different timesteps; learn a recipe for each")
            if found[0].outputs.shape != found[-1].outputs.shape:
                raise DipgoError("these pictures have different sizes or guidance; learn a recipe for each")
        return found

    def quality(self, scored: Sequence, schedule: Schedule, costs: CostModel, count: int) -> dict[str, Any]:
        """Return what the schedule is worth on pictures, and as many steps as it computes calls beside it."""
        dense = [run.picture for run in self.runs(scored, "held back, dense")]
        ours = [run.picture for run in self.runs(scored, "held back, by the recipe", schedule, costs)]
        return worth(self.pipe, scored, self.arguments, (dense, ours), count)


class _Kept:
    """Runs that are kept in a folder, so that an interrupted learning goes on. Without a folder nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    @classmethod
    def at(cls, folder: Path | str | None) -> _Kept:
        """Return what is kept in a folder, which is made. Raises `DipgoError` where it cannot be."""
        if folder is not None:
            try:
                Path(folder).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DipgoError(f"{folder}: {error.strerror or error}; give a folder that can be written") from None
        return cls(None if folder is None else Path(folder))

    def run(self, key: str, make: Callable[[], Recorded]) -> Recorded:
        """Return the run of that key: the kept one, or one that is made now."""
        if self.folder is None:
            return make()
        path = self.folder / f"run-{key}.safetensors"
        if not path.exists():
            made = make()
            arrays = {name: np.ascontiguousarray(getattr(made, name)) for name in ARRAYS}
            rest = {each.name: getattr(made, each.name) for each in fields(made) if each.name not in ARRAYS}
            write_bytes(path, save(arrays, {"data": json.dumps(rest)}))
            return made
        try:
            with safe_open(path, "np") as file:
                rest = json.loads(file.metadata()["data"])
                arrays = {name: file.get_tensor(name) for name in ARRAYS}
            tuples = {name: tuple(value) if isinstance(value, list) else value for name, value in rest.items()}
            return Recorded(**arrays, **tuples)
        except Exception as error:  # safetensors raises what it likes on a damaged file
            raise DipgoError(f"{path}: not a kept run ({first_line(error)}); remove it") from None


def _schedule(run: Recorded, computed: Sequence[int], coefficients: np.ndarray) -> Schedule:
    reuse = np.ones((len(run.timesteps), 1), dtype=bool)
    reuse[list(computed)] = False
    return Schedule((WHOLE_CALL,), reuse, coefficients, run.timesteps)


def _loss(own: Sequence[Recorded], dense: Sequence[Recorded]) -> float:
    """Return the negative mean PSNR of runs to the dense ones."""
    return -float(np.mean([psnr(run.picture, aim.picture) for run, aim in zip(own, dense, strict=True)]))


def _is_plain(value: Any) -> bool:
    """Whether JSON holds a value whole; tensors and pictures it does not."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def first_inputs(pipe: Any, component: str, picture: Any, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the inputs of the denoiser's first call for a picture, given as `draw` takes it."""
    args, kwargs = ((), picture) if isinstance(picture, Mapping) else ((picture,), {})
    return capture(pipe, *args, component=component, **kwargs, **arguments)


def worth(
    pipe: Any,
    pictures: Sequence[tuple[Any, int]],
    arguments: Mapping[str, Any],
    drawn: tuple[Sequence[np.ndarray], Sequence[np.ndarray]],
    count: int,
) -> dict[str, Any]:
    """Return what a recipe is worth on pictures (`Recipe.quality`). Warns where fewer steps give as much.

    pictures: the prompt and seed of each.
    arguments: the pipeline's own.
    drawn: these pictures drawn densely, and by the recipe.
    count: how many calls the recipe computes. As many steps of the pipeline's scheduler are drawn beside it.
    """
    dense, ours = drawn
    found = interval([psnr(*pair) for pair in zip(ours, dense, strict=True)])
    if isinstance(arguments.get(STEPS), int):
        fewer = {**arguments, STEPS: count}
        beside = float(np.mean([psnr(draw(pipe, *one, fewer), aim) for one, aim in zip(pictures, dense, strict=True)]))
        found |= {"steps": count, "steps_psnr": beside}
        if found["psnr"] <= beside:
            log.warning(
                "nothing was learned that fewer steps do not give: %.2f dB to the dense run, where %s=%d gives "
                "%.2f at the same cost; raise the budget, give more pictures, or draw with fewer steps",
                *(found["psnr"], STEPS, count, beside),
            )
    return found


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Return how many PSNRs there are, their mean and its 95 % interval, which a single one does not have."""
    found = {"pictures": len(values), "psnr": float(np.mean(values))}
    if len(values) > 1:
        wide = 1.96 * float(np.std(values, ddof=1)) / len(values) ** 0.5
        found |= {"low": found["psnr"] - wide, "high": found["psnr"] + wide}
    return found


def digest_of(value: Any) -> str:
    """Return 16 hex digits of a value made of plain ones, arrays, tensors, pictures, and mappings and lists of them."""
    digest = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, Mapping):
            part = sorted(part.items())
        if isinstance(part, torch.Tensor):
            part = part.detach().cpu().float().numpy()
        digest.update(type(part).__name__.encode())
        if isinstance(part, (list, tuple)):
            digest.update(str(len(part)).encode())
            for each in part:
                add(each)
        elif hasattr(part, "__array_interface__"):
            array = np.ascontiguousarray(part)
            digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
        else:
            digest.update(repr(part).encode())

    add(value)
    return digest.hexdigest()[:16]


@contextmanager
def quiet(pipe: Any) -> Iterator[None]:
    """In here a pipeline of diffusers shows no progress bars of its own."""
    before = dict(getattr(pipe, "_progress_bar_config", {}))
    if hasattr(pipe, "set_progress_bar_config"):
        pipe.set_progress_bar_config(**{**before, "disable": True})
    try:
        yield
    finally:
        if hasattr(pipe, "set_progress_bar_config"):
            pipe.set_progress_bar_config(**before)
