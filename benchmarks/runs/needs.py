"""What runs need before they are begun: pictures, MACs and assets, counted without measuring or downloading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from baselines import Plan, PlanContext, method
from baselines.plan import NeedsPictures
from baselines.preparation import Estimate
from benchmarks.models import model as models
from benchmarks.models import shapes as paper_models
from benchmarks.models.generate import image_paths
from benchmarks.models.macs import macs_cells
from benchmarks.prepare import kept
from benchmarks.specs.profiles import PROFILES
from benchmarks.specs.run import RunSpec
from benchmarks.supply.datasets import LENGTHS
from benchmarks.supply.paper_configs import paper_model
from benchmarks.supply.profiles import source
from dipgo import Sampler
from dipgo.errors import DipgoError, unknown

TERA, PETA = 1e12, 1e15
NOTES = """\
calls: the denoiser calls of a picture. TMACs: the cost of a picture, in all operations, calls and guidance branches;
  ~ marks a run whose schedule is not known yet, and shows what the run asks for. PMACs: the cost of what is left to
  make; a training, learning or search counts with the first run that needs it.
Each picture of a training costs the dense run, a forward pass of all blocks, a backward pass (as much again, because
  the weights are frozen) and, with checkpoints, another forward pass. A learning or search costs every schedule that
  it may try, in full.
Text encoders, decoders, judges and the timing of latency come on top."""


@dataclass(frozen=True)
class Need:
    """What is left to do for a run."""

    spec: RunSpec
    calls: int
    """Denoiser calls of a picture."""
    made: int
    """How many pictures are there already."""
    pictures: int
    """How many pictures the run has in all."""
    macs: float
    """MACs of one picture: all operations, calls and guidance branches."""
    about: bool
    """Whether `macs` is only what the run asks for, because the schedule is not known yet."""
    preparing: float
    """MACs of the preparations that the run is the first to need."""
    assets: tuple[str, ...]
    """The names of what it needs besides the repository."""

    @property
    def total(self) -> float:
        """MACs that are left."""
        return self.macs * (self.pictures - self.made) + self.preparing


def needs(specs: Sequence[RunSpec], workspace: Path) -> list[Need]:
    """Return what each run needs, in order; what two runs share counts with the first of them.

    Raises `DipgoError` for settings that no method takes.
    """
    listed, seen = [], set()
    for spec in specs:
        dense = _plan(spec, "dense")
        params = method(spec.method).read(spec.params)
        share = _share(params, dense)
        estimate = Estimate(_macs(spec, dense), share, dense.sampler.calls, branches(spec))
        about = False
        try:
            macs = _macs(spec, _plan(spec, spec.method))
        except NeedsPictures:
            macs, about = estimate.macs * share, True
        counts = [min(spec.limit, size(spec, name)) for name in spec.prompts]
        folders = [workspace / spec.digest / name for name in spec.prompts]
        made = sum(path.exists() for folder, n in zip(folders, counts, strict=True) for path in image_paths(folder, n))
        pictures, preparing = sum(counts), 0.0
        for path, preparation in kept.preparations(spec, workspace).items():
            if path not in seen and not kept.finished(path):
                preparing += preparation.macs(estimate)
            seen.add(path)
        if spec.digest in seen:
            made = pictures  # another id of a run that is already counted
        seen.add(spec.digest)
        assets = tuple(source(spec.profile).assets(spec.to_json()))
        listed.append(Need(spec, estimate.calls, made, pictures, macs, about, preparing, assets))
    return listed


def size(spec: RunSpec, prompts: str) -> int:
    """Return how many captions a prompt set has; nothing needs to be there for the answer."""
    if not PROFILES[spec.profile].paper_models:
        return len(source(spec.profile).captions(prompts, spec.model))
    if prompts not in LENGTHS:
        raise DipgoError(f"run {spec.id!r}: {unknown('prompt set', prompts, LENGTHS)}")
    return LENGTHS[prompts]


def _plan(spec: RunSpec, name: str) -> Plan:
    """Return the plan of a run's method, or of "dense". Raises `NeedsPictures` where pictures decide it."""
    params = spec.params if name == spec.method else {}
    if PROFILES[spec.profile].paper_models:
        return paper_models.plan(spec.model, Sampler(spec.scheduler, {}, spec.steps), name, params)
    model = models.load(spec)
    sampler = model.sampler(spec.scheduler, spec.steps)
    return method(name).plan(PlanContext(model.denoiser, model.costs, sampler, params))


def _macs(spec: RunSpec, plan: Plan) -> float:
    return macs_cells(plan, branches(spec))["macs_full"]["value"]


def branches(spec: RunSpec) -> int:
    """Return the number of guidance branches of a call."""
    if PROFILES[spec.profile].paper_models:
        return paper_model(spec.model).branches
    return models.load(spec).branches(spec.guidance)


def _share(params: object, dense: Plan) -> float:
    """Return the share of the dense run's MACs that a run's parameters ask for."""
    ratio, calls = getattr(params, "ratio", None), getattr(params, "calls", None)
    if ratio is not None:
        return 1 - ratio
    return 1.0 if calls is None else calls / dense.sampler.calls


def listing(found: Sequence[Need]) -> str:
    """Return a line for each run, as plain text, and the totals."""
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
    """Return the numbers of runs, pictures and MACs in one line."""
    left, preparing = sum(need.total for need in found), sum(need.preparing for need in found)
    pictures = sum(need.pictures - need.made for need in found)
    total = f"{len(found)} runs, {pictures:,} pictures to make, {short(left / PETA)} PMACs"
    return total + (f", {short(preparing / PETA)} of them for trainings and searches" if preparing else "")


def short(value: float) -> str:
    """Return a number with four digits, or with all that stand before the point."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
