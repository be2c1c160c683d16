"""A `Recipe`: a schedule, what it was made for, and what it was worth; stored, shared, and refused elsewhere. No torch.

A folder holds its recipes in one JSON file, with safetensors beside it where coefficients are many: one recipe for each
denoiser of a pipeline and each list of timesteps.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from dipgo.errors import DipgoError, first_line, unknown
from dipgo.files import read_json, write_bytes, write_text
from dipgo.schedule import Schedule

VERSION = 1  # of the file format
FILE, TENSORS = "dipgo_recipe.json", "dipgo_recipe.safetensors"
LARGE = 10_000  # coefficients; more than that go into safetensors
CONVENTIONS = ("full", "paper")
QUALITY = ("pictures", "psnr", "low", "high", "steps", "steps_psnr", "retimed")
PROVENANCE = ("method", "settings", "seed", "prompts", "versions", "device", "date", "seconds")


@dataclass(frozen=True)
class Target:
    """The pipeline that a recipe is made for. Its texts are class names; configurations hold plain JSON values."""

    pipeline: str
    component: str
    """The name under which the pipeline holds the denoiser, such as "unet"."""
    denoiser: str
    config: Mapping[str, Any]
    weights: str
    """A digest of the denoiser's weights. Another one warns, so that fine-tunes share a recipe."""
    scheduler: str
    scheduler_config: Mapping[str, Any]

    def misfit(self, here: Target) -> str | None:
        """Return one line on how another pipeline differs from this one, or None where the recipe fits it."""
        for name in ("pipeline", "component", "denoiser", "scheduler"):
            made, now = getattr(self, name), getattr(here, name)
            if made != now:
                return f"the recipe was made for the {name} {made}, but this is {now}"
        for name, what in (("config", self.denoiser), ("scheduler_config", self.scheduler)):
            made, now = getattr(self, name), getattr(here, name)
            for key in sorted(made.keys() | now.keys()):
                if made.get(key) != now.get(key):
                    return f"the recipe was made for a {what} with {key} = {made.get(key)!r}, not {now.get(key)!r}"
        return None


@dataclass(frozen=True)
class RunForm:
    """What the calls of a sampler run look like, besides their timesteps, which the schedule holds."""

    branches: int
    """Guidance branches: rows of a picture in a call's batch, or calls of a step."""
    calls_per_step: int
    """1 where the branches share a batch; else as many as `branches`."""
    grid: tuple[float, ...]
    """All timesteps that the scheduler was set to when the run began. Empty where the scheduler has no such list."""
    latent: tuple[int, ...]
    """The shape of one picture's sample. Another one warns."""

    def misfit(self, grid: Sequence[float], branches: int | None) -> str | None:
        """Return one line on how a run that begins differs, or None. An empty grid or no branches are not known."""
        if branches is not None and branches != self.branches:
            return f"the recipe was made for {self.branches} guidance branches in a call, but this run has {branches}"
        if self.grid and len(grid) and len(grid) != len(self.grid):
            return f"the recipe was made for {len(self.grid)} timesteps, but the scheduler is set to {len(grid)}"
        for place, (made, now) in enumerate(zip(self.grid, grid, strict=False)):
            if not math.isclose(made, now, rel_tol=1e-5, abs_tol=1e-5):
                return f"the recipe was made for timestep {place} at {made:g}, but the scheduler is set to {now:g}"
        return None


@dataclass(frozen=True, eq=False)
class Recipe:
    """A schedule with its identity. `print` shows its calls, its MACs and a map of its gates."""

    target: Target
    form: RunForm
    schedule: Schedule
    """Has timesteps: every call is checked against them before anything stale is used."""
    graph: Mapping[str, Any]
    """The data flow between the schedule's sites: for each what it `reads`, as indices; what the `output` reads; and
    whether the denoiser's inputs reach its output around the sites (`bypassed`). Where sites are deltas, `streams` says
    which inputs of each site they are on top of. See `dipgo.BlockGraph`."""
    rule: str = "hold"
    """How reused values are made, as a name of `dipgo.RULES`."""
    macs: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """By convention, "full" and "paper": the MACs of one picture's dense run, and of the run by the schedule."""
    quality: Mapping[str, Any] = field(default_factory=dict)
    """What was measured: how many `pictures`, their mean `psnr` to the dense run in dB with a 95 % interval from `low`
    to `high`; the `steps_psnr` of as many `steps` of the pipeline's scheduler beside it."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """How it was made: the method, its settings and seed, a digest of the prompts, versions, device and date."""

    def __post_init__(self) -> None:
        if self.schedule.timesteps is None:
            raise DipgoError("a recipe's schedule needs the timestep of every call; give Schedule(..., timesteps=...)")

    @property
    def digest(self) -> str:
        """16 hex digits that identify what the recipe is for and what it does."""
        data = self.to_dict()
        kept = {name: data[name] for name in ("target", "form", "schedule", "graph", "rule")}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def computed_calls(self) -> int:
        """Calls in which anything is computed, where every site is read."""
        return int((~self.schedule.reuse).any(axis=1).sum())

    def key(self) -> tuple:
        """Return what tells the recipes of one folder apart: the denoiser's place, its timesteps and branches."""
        times = tuple(np.round(self.schedule.timesteps, 3).tolist())
        return self.target.component, times, self.form.grid, self.form.branches, self.form.calls_per_step

    def __str__(self) -> str:
        lines = [
            f"{self.target.component} ({self.target.denoiser}) of {self.target.pipeline}, {self.target.scheduler}: "
            f"{self.computed_calls} of {self.schedule.calls} calls, rule {self.rule}"
        ]
        for name, (dense, spent) in self.macs.items():
            lines.append(f"MACs ({name}): {spent / 1e9:.4g} G of {dense / 1e9:.4g} G, {1 - spent / dense:.1%} pruned")
        if "psnr" in self.quality:
            q = self.quality
            bounds = f" [{q['low']:.2f}, {q['high']:.2f}]" if "low" in q else ""
            text = f"PSNR to the dense run: {q['psnr']:.2f} dB{bounds}, n = {q['pictures']}"
            if "steps_psnr" in q:
                text += f"; {q['steps']} steps of the same scheduler: {q['steps_psnr']:.2f} dB"
            lines.append(text)
        if "retimed" in self.quality:
            source = self.quality["retimed"]
            there = f"{source['psnr']:.2f} dB" if "psnr" in source else "an unknown PSNR"
            text = f"carried over from {source['from_calls']} calls, where it had {there} to the dense run of these"
            lines.append(text if "psnr" in self.quality else f"{text}; not measured here")
        return "\n".join([*lines, str(self.schedule)])

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "target": _plain(self.target),
            "form": _plain(self.form),
            "schedule": self.schedule.to_dict(),
            "graph": dict(self.graph),
            "rule": self.rule,
            "macs": {name: list(values) for name, values in self.macs.items()},
            "quality": dict(self.quality),
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """Return the recipe of what `to_dict` gave.

        Raises `DipgoError` for anything else, an unknown field included.
        """
        _check_fields("recipe", data, [each.name for each in fields(cls)])
        _finite(data)
        target, form = dict(data["target"]), data["form"]
        _check_fields("recipe's target", target, [each.name for each in fields(Target)])
        for name, value in target.items():
            wanted = dict if name.endswith("config") else str
            if not isinstance(value, wanted):
                raise DipgoError(f"a recipe's target.{name} must be a {wanted.__name__}, not {value!r:.60}")
        _check_fields("recipe's form", form, [each.name for each in fields(RunForm)])
        for name in ("branches", "calls_per_step"):
            if type(form[name]) is not int or form[name] < 1:
                raise DipgoError(f"a recipe's form.{name} is {form[name]!r}; it must be a whole number from 1 on")
        for name in ("grid", "latent"):
            if not isinstance(form[name], list) or not all(type(each) in (int, float) for each in form[name]):
                raise DipgoError(f"a recipe's form.{name} must be a list of numbers")
        if not isinstance(data["rule"], str):
            raise DipgoError(f"a recipe's rule must be a text, not {data['rule']!r:.60}")
        for name, known in (("macs", CONVENTIONS), ("quality", QUALITY), ("provenance", PROVENANCE)):
            _check_fields(f"recipe's {name}", data[name], known, all_of_them=False)
        for name, values in data["macs"].items():
            numbers = isinstance(values, list) and [each for each in values if type(each) in (int, float) and each > 0]
            if not numbers or len(values) != 2 or len(numbers) != 2:
                raise DipgoError(f"a recipe's macs.{name} must be two positive numbers, of the dense run and of its")
        schedule, graph = Schedule.from_dict(data["schedule"]), data["graph"]
        _check_graph(graph, len(schedule.sites))
        lists = {"grid": tuple(map(float, form["grid"])), "latent": tuple(form["latent"])}
        return cls(
            Target(**target),
            RunForm(**{**form, **lists}),
            schedule,
            graph,
            data["rule"],
            {name: tuple(map(float, values)) for name, values in data["macs"].items()},
            data["quality"],
            data["provenance"],
        )

    def save_pretrained(self, folder: Path | str) -> None:
        """Write into a folder, beside the recipes for other timesteps or denoisers that are there already."""
        folder = Path(folder)
        there = load_recipes(folder) if (folder / FILE).exists() else []
        save_recipes(folder, [*(other for other in there if other.key() != self.key()), self])

    @classmethod
    def from_pretrained(cls, source: Path | str, calls: int | None = None) -> Recipe:
        """Read the recipe of a folder or of a repository of the hub, where there are several the one of `calls`
        calls."""
        found = [recipe for recipe in load_recipes(source) if calls in (None, recipe.schedule.calls)]
        if len(found) != 1:
            raise DipgoError(f"{source} holds {len(found)} recipes {f'of {calls} calls ' if calls else ''}; say which")
        return found[0]

    def retimed(self, steps: int) -> Recipe:
        """Return a recipe for another number of steps; see `dipgo.recipes.retime.retimed`."""
        from dipgo.recipes.retime import retimed

        return retimed(self, steps)

    def push_to_hub(self, repository: str, **options: Any) -> str:
        """Upload to a repository of the hub, and return the commit's address.

        repository: its id, such as "name/my-recipe". It is made where there is none.
        options: further arguments of `huggingface_hub.HfApi`: `token`, `revision`, `commit_message`, `private`.
        """
        from tempfile import TemporaryDirectory

        from huggingface_hub import HfApi

        api = HfApi(token=options.pop("token", None))
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            api.create_repo(repository, private=options.pop("private", None), exist_ok=True)
            return str(api.upload_folder(repo_id=repository, folder_path=folder, **options))


def save_recipes(folder: Path | str, recipes: Sequence[Recipe]) -> None:
    """Write all recipes of a folder, whole or not at all."""
    folder, stored, arrays = Path(folder), [], {}
    for recipe in recipes:
        data = recipe.to_dict()
        coefficients = recipe.schedule.coefficients
        if coefficients is not None and coefficients.size > LARGE:
            data["schedule"]["coefficients"] = recipe.schedule.digest
            arrays[recipe.schedule.digest] = coefficients
        stored.append(data)
    if arrays:
        from safetensors.numpy import save

        # These go first, and the old ones stay, so that the old file of recipes can be read until the new one is there.
        old = _tensors(folder / TENSORS) if (folder / TENSORS).exists() else {}
        write_bytes(folder / TENSORS, save({**old, **arrays}))
    write_text(folder / FILE, json.dumps({"version": VERSION, "recipes": stored}, indent=1) + "\n")


def load_recipes(source: Path | str) -> list[Recipe]:
    """Read all recipes of a folder, or of a repository of the hub where there is no such folder.

    Raises a `DipgoError` that names the file where it is not one of recipes, of another version, or damaged.
    """
    folder = Path(source)
    if folder.name == FILE:
        folder = folder.parent
    if not folder.exists() and str(source).count("/") == 1:
        folder = _fetched(str(source))
    path = folder / FILE
    data = read_json(path, "recipes")
    try:
        _check_fields("file of recipes", data, ("version", "recipes"))
        if type(data["version"]) is not int or data["version"] != VERSION:
            raise DipgoError(f"its version is {data['version']!r}, but this dipgo reads {VERSION}; update dipgo")
        if not isinstance(data["recipes"], list) or not data["recipes"]:
            raise DipgoError("it holds no recipes")
        return [_read(recipe, folder) for recipe in data["recipes"]]
    except DipgoError as error:
        raise DipgoError(f"{path}: {error}") from None


def _read(data: Any, folder: Path) -> Recipe:
    schedule = data.get("schedule") if isinstance(data, Mapping) else None
    digest = schedule.get("coefficients") if isinstance(schedule, Mapping) else None
    if not isinstance(digest, str):
        return Recipe.from_dict(data)
    arrays = _tensors(folder / TENSORS)
    if digest not in arrays:
        raise DipgoError(f"{TENSORS} beside it lacks the coefficients {digest}; restore both files together")
    recipe = Recipe.from_dict({**data, "schedule": {**schedule, "coefficients": arrays[digest].tolist()}})
    if recipe.schedule.digest != digest:
        raise DipgoError(f"the schedule {digest} has the digest {recipe.schedule.digest}; restore both files together")
    return recipe


def _tensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load

    try:
        return load(path.read_bytes())
    except Exception as error:  # safetensors raises what it likes on a damaged file
        raise DipgoError(f"{path.name} beside it cannot be read: {first_line(error)}") from None


def _fetched(repository: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=[FILE, TENSORS]))
    except Exception as error:  # the hub's client raises errors of many libraries
        raise DipgoError(f"{repository}: no such folder, and not read from the hub: {first_line(error)}") from None


def _check_graph(graph: Any, sites: int) -> None:
    _check_fields("recipe's graph", graph, ("reads", "output", "bypassed", "streams"), all_of_them=False)
    _check_fields("recipe's graph", {**graph, "streams": None}, ("reads", "output", "bypassed", "streams"))
    rows = [*graph["reads"], graph["output"]] if isinstance(graph["reads"], list) else []
    ends = [*range(len(rows) - 1), sites]
    if len(rows) != sites + 1 or not all(
        isinstance(row, list) and all(type(i) is int and 0 <= i < end for i in row)
        for row, end in zip(rows, ends, strict=True)
    ):
        raise DipgoError(f"a recipe's graph must list, for each of {sites} sites and the output, earlier sites")
    if type(graph["bypassed"]) is not bool:
        raise DipgoError(f"a recipe's graph.bypassed must be true or false, not {graph['bypassed']!r:.60}")
    streams = graph.get("streams", [[]] * sites)
    if not isinstance(streams, list) or len(streams) != sites or not all(map(_are_streams, streams)):
        raise DipgoError(
            f"a recipe's graph.streams must list, for each of {sites} sites, positions and names of inputs"
        )


def _are_streams(row: Any) -> bool:
    pairs = row if isinstance(row, list) else [None]
    return all(isinstance(pair, list) and [type(part) for part in pair] == [int, str] for pair in pairs)


def _plain(record: Any) -> dict[str, Any]:
    values = {each.name: getattr(record, each.name) for each in fields(record)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _check_fields(what: str, data: Any, known: Sequence[str], all_of_them: bool = True) -> None:
    if not isinstance(data, Mapping):
        raise DipgoError(f"a {what} is a table, not a {type(data).__name__}")
    for name in data:
        if name not in known:
            raise unknown(f"field of a {what}", name, known)
    for name in known if all_of_them else ():
        if name not in data:
            raise DipgoError(f"a {what} needs the field {name!r}")


def _finite(value: Any) -> None:
    """Raise where a number has no bound: JSON's 1e999 is read as infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        raise DipgoError("a recipe holds a number that is not finite")
    for part in value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ():
        _finite(part)
