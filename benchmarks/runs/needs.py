"""What runs need before they are begun: pictures, MACs and assets, counted without measuring or downloading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tabulate import tabulate

from baselines import Plan, PlanContext, method
from benchmarks.models import model as models
from benchmarks.models import shapes as paper_models
from benchmarks.models.generate import image_paths
from benchmarks.models.macs import macs_cells
from benchmarks.prepare import forecasts, training
from benchmarks.prepare import search as fitness
from benchmarks.runs.tasks import FORECASTS, PREPARED, PRUNERS, SEARCHES
from benchmarks.specs.run import PROFILES, RunSpec
from benchmarks.supply.datasets import LENGTHS
from benchmarks.supply.paper_configs import paper_model
from benchmarks.supply.profiles import source
from dipgo import LearnConfig, Sampler, TrainConfig
from dipgo.errors import DipgoError, unknown

FROM_PICTURES = PREPARED | {"of"}  # params of methods whose schedules are not known beforehand
COSTLY = ("steps", "accumulate", "checkpoint")  # what of a training's settings decides its cost
TRIED = ("rounds", "memory", "shift", "groups")  # and of a learning's
TERA, PETA = 1e12, 1e15
NOTES = """\
calls: of the denoiser, a picture. TMACs: of a picture, all operations, calls and guidance branches; ~ is the target of
  a schedule that is not known yet. PMACs: of what is left to make; trainings, learnings and searches stand in the first
  run that needs them.
A training takes, of each of its pictures, the dense run, a forward pass of all blocks, a backward pass (as much again,
  since the weights are frozen) and, with checkpoints, another forward pass. Learnings and searches: every schedule that
  they may try, in full.
Text encoders, decoders, judges and the timing of latency come on top."""


@dataclass(frozen=True)
class Need:
    """What is left of a run. `macs` of one picture, exact or `about`; `preparing`: MACs of the training, learning or
    search that it is the first to need. `assets`: names."""

    spec: RunSpec
    calls: int
    made: int
    pictures: int
    macs: float
    about: bool
    preparing: float
    assets: tuple[str, ...]

    @property
    def total(self) -> float:
        """MACs that are left."""
        return self.macs * (self.pictures - self.made) + self.preparing


def needs(specs: Sequence[RunSpec], workspace: Path) -> list[Need]:
    """What each run needs, in order; what two share counts with the first. Raises `DipgoError` for
    settings that no method takes."""
    found, seen = [], set()
    for spec in specs:
        dense = _plan(spec, "dense", {})
        whole = _macs(spec, dense)
        known = FROM_PICTURES.isdisjoint(spec.params)
        macs = _macs(spec, _plan(spec, spec.method, spec.params)) if known else whole * _share(spec, dense)
        counts = [min(spec.limit, size(spec, name)) for name in spec.prompts]
        folders = [workspace / spec.digest / name for name in spec.prompts]
        made = sum(path.exists() for folder, n in zip(folders, counts, strict=True) for path in image_paths(folder, n))
        pictures = sum(counts)
        preparing = 0.0
        for path, cost in _preparations(spec, workspace, whole, dense):
            preparing += 0.0 if path in seen else cost
            seen.add(path)
        if spec.digest in seen:
            made = pictures  # another id of a run that is already counted
        seen.add(spec.digest)
        names = tuple(source(spec.profile).assets(spec.to_json()))
        found.append(Need(spec, dense.sampler.calls, made, pictures, macs, not known, preparing, names))
    return found


def size(spec: RunSpec, prompts: str) -> int:
    """How many captions a prompt set has; nothing needs to be there for the answer."""
    if spec.profile == PROFILES[0]:
        return len(source(spec.profile).captions(prompts, spec.model))
    if prompts not in LENGTHS:
        raise DipgoError(f"run {spec.id!r}: {unknown('prompt set', prompts, LENGTHS)}")
    return LENGTHS[prompts]


def _plan(spec: RunSpec, name: str, params: Mapping[str, Any]) -> Plan:
    """The plan of a method that needs no pictures."""
    if spec.profile != PROFILES[0]:
        return paper_models.plan(spec.model, Sampler(spec.scheduler, {}, spec.steps), name, params)
    model = models.load(spec)
    sampler = Sampler(spec.scheduler, model.scheduler_config, spec.steps)
    return method(name)(PlanContext(model.denoiser, model.costs, sampler, params, *[_no_pictures] * 3))


def _no_pictures(*arguments: Any) -> Any:
    raise DipgoError("no pictures are made to say what a run needs")


def _macs(spec: RunSpec, plan: Plan) -> float:
    return macs_cells(plan, branches(spec))["macs_full"]["value"]


def branches(spec: RunSpec) -> int:
    """Guidance branches of a call."""
    if spec.profile != PROFILES[0]:
        return paper_model(spec.model).branches
    return models.load(spec).branches(spec.guidance)


def _share(spec: RunSpec, dense: Plan) -> float:
    """The target of a schedule that is not known yet, as a share of the dense run's MACs."""
    if "ratio" in spec.params:
        return 1 - spec.params["ratio"]
    return spec.params.get("calls", dense.sampler.calls) / dense.sampler.calls


def _preparations(spec: RunSpec, workspace: Path, whole: float, dense: Plan) -> list[tuple[Path, float]]:
    """The training, the learning and the search that a run starts from and that are not through, by file, with their
    MACs. Every schedule that a search or a learning may try is charged in full, although what schedules have in common
    runs once. `whole`: MACs of a picture of the `dense` run."""
    found, share = [], _share(spec, dense)
    if "train" in spec.params:
        path, settings = training.path_of(spec, spec.params["train"], workspace / PRUNERS), spec.params["train"]
        config = replace(TrainConfig(), **{key: settings[key] for key in COSTLY if key in settings})
        pictures = config.steps * config.accumulate * settings.get("batch", training.BATCH)
        if not path.exists():
            found.append((path, pictures * whole * (4 if config.checkpoint else 3)))
    if "learn" in spec.params:
        path, settings = forecasts.path_of(spec, workspace / FORECASTS), spec.params["learn"]
        config = replace(LearnConfig(), **{key: settings[key] for key in TRIED if key in settings})
        tried = config.tried(round(share * dense.sampler.calls), branches(spec))
        if not path.exists():
            found.append((path, settings.get("pictures", forecasts.PICTURES) * whole * (1 + tried * share)))
    if "search" in spec.params:
        path = fitness.path_of(spec, workspace / SEARCHES)
        images = spec.params["fitness"]["images"]
        evaluated = spec.params["search"]["evaluations"] * share
        if not fitness.read_journal(path).finished:
            found.append((path, images * whole * (1 + evaluated)))
    return found


def listing(found: Sequence[Need]) -> str:
    """A line a run, as plain text, and the totals."""
    headers = ["run", "model", "method", "sampler", "calls", "pictures", "to make", "TMACs", "PMACs", "needs"]
    rows = [
        [
            need.spec.id,
            need.spec.model,
            need.spec.method,
            f"{need.spec.scheduler} {need.spec.steps}",
            need.calls,
            need.pictures,
            need.pictures - need.made,
            f"{'~' if need.about else ''}{short(need.macs / TERA)}",
            short(need.total / PETA),
            ", ".join(need.assets) or "-",
        ]
        for need in found
    ]
    align = ["left"] * 4 + ["right"] * 5 + ["left"]
    grid = tabulate(rows, headers, "plain", disable_numparse=True, colalign=align)
    return "\n".join([grid, "", summary(found), "", NOTES])


def summary(found: Sequence[Need]) -> str:
    """Runs, pictures and MACs in one line."""
    left, preparing = sum(need.total for need in found), sum(need.preparing for need in found)
    pictures = sum(need.pictures - need.made for need in found)
    total = f"{len(found)} runs, {pictures:,} pictures to make, {short(left / PETA)} PMACs"
    return total + (f", {short(preparing / PETA)} of them for trainings and searches" if preparing else "")


def short(value: float) -> str:
    """Four digits, or all that stand before the point."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
