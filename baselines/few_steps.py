"""A control: fewer steps, by any stock solver of diffusers on any grid of timesteps.

Solvers and grids are diffusers' own configurations (https://huggingface.co/docs/diffusers/api/schedulers/overview).
Timesteps that are given one by one, such as a part of the dense run's, go to every solver that works on sigmas.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from diffusers.schedulers import AysSchedules

from baselines.learned_forecast import reaching
from baselines.plan import Plan, PlanContext
from baselines.preparation import Pictures
from baselines.step_skip import spread
from dipgo import Diffusion, Inputs
from dipgo.errors import DipgoError, first_line, unknown
from dipgo.registry import Registry
from dipgo.sampling import Sampler, StockSampler
from dipgo.solver import Solver, rollout_solvers

EXAMPLES = (
    {"calls": 3, "solver": "deis-3", "grid": "karras", "last": "sigma_min"},
    {"calls": 3, "solver": "heun", "grid": "part"},
)


def _settings(kind: str, **settings: Any) -> Mapping[str, Any]:
    return MappingProxyType({"_class_name": f"{kind}Scheduler", **settings})


SOLVERS: Registry[Mapping[str, Any]] = Registry(
    "solver",
    {
        "ddim": _settings("DDIM", clip_sample=False),
        "plms": _settings("PNDM", skip_prk_steps=True),
        "euler": _settings("EulerDiscrete"),
        "heun": _settings("HeunDiscrete", clip_sample=False),
        **{
            f"dpm-{order}{letter}": _settings(f"DPMSolver{kind}", algorithm_type="dpmsolver++", solver_order=order)
            for kind, letter in (("Multistep", "m"), ("Singlestep", "s"))
            for order in (2, 3)
        },
        **{f"deis-{order}": _settings("DEISMultistep", solver_order=order) for order in (2, 3)},
        **{
            f"unipc-{order}-{kind}": _settings("UniPCMultistep", solver_order=order, solver_type=kind)
            for order in (2, 3)
            for kind in ("bh1", "bh2")
        },
    },
)
"""The stock solvers, as parts of diffusers' scheduler configuration."""
COMPUTED = "computed"
GRIDS: Registry[Mapping[str, Any] | None] = Registry(
    "grid",
    {
        **{name: {"timestep_spacing": name} for name in ("leading", "trailing", "linspace")},
        **{name: {f"use_{name}_sigmas": True} for name in ("karras", "exponential", "beta")},
        "lambdas": {"use_lu_lambdas": True},
        **dict.fromkeys(("part", "reach", "ays", "ays-xl", COMPUTED)),
    },
)
"""The grids: settings of diffusers or, where there are none, timesteps that `timesteps_of` gives.

"part" is an even part of the dense run's grid, with its start; "reach" is the same, but the last gap is half as long;
"ays" and "ays-xl" are the lists of Align Your Steps (arXiv 2404.14507) that diffusers ships; "computed" are the
timesteps at which another method computes."""
LAST = ("zero", "sigma_min")
"""Where the last step ends: at no noise, or at the smallest that the model was trained on."""


@dataclass(frozen=True)
class Configuration:
    """A stock solver on a grid."""

    solver: str
    """A name in `SOLVERS`."""
    grid: str
    """A name in `GRIDS`."""
    last: str = LAST[0]
    """A name in `LAST`."""

    def __post_init__(self) -> None:
        SOLVERS[self.solver], GRIDS[self.grid]  # noqa: B018  (unknown names are refused here)
        if self.last not in LAST:
            raise unknown("end of the last step", self.last, LAST)

    def __str__(self) -> str:
        return f"{self.solver}, {self.grid}, {self.last}"

    def sampler(self, dense: Sampler, calls: int, computed: Sequence[float] = ()) -> StockSampler:
        """Return the sampler that makes at most so many calls.

        dense: the dense run's sampler, which gives the model's configuration and the dense grid.
        calls: the budget. Heun calls twice a step but the last, and PLMS twice in one step.
        computed: the timesteps of the grid "computed".

        Raises `DipgoError` where the solver does not take the grid or the end.
        """
        if not 1 <= calls <= dense.calls:
            raise DipgoError(f"calls is {calls}; it must lie between 1 and {dense.calls}")
        steps = {"heun": (calls + 1) // 2, "plms": calls - 1 if calls > 1 else 1}.get(self.solver, calls)
        settings, grid = GRIDS[self.grid], None
        if settings is None:
            settings, grid = {}, timesteps_of(self.grid, dense, steps, computed)
        elif self.solver.endswith("s") and self.grid == "linspace":
            settings = {}  # the one spacing of single-step solvers, which take no name for it
        settings = {**SOLVERS[self.solver], **settings, **self._end()}
        return StockSampler(str(self), dense.config, steps, settings=settings, grid=grid)

    def solved(self, dense: Sampler, calls: int, computed: Sequence[float] = ()) -> Solver:
        """Return the table of that sampler. Whatever diffusers raises becomes a `DipgoError`."""
        try:
            solver = Solver.of(self.sampler(dense, calls, computed))
        except DipgoError:
            raise
        except Exception as error:
            raise DipgoError(f"diffusers: {first_line(error)}") from error
        if solver.calls > calls:
            raise DipgoError(f"{self.solver} makes {solver.calls} calls, where {calls} are allowed")
        return solver

    def _end(self) -> Mapping[str, Any]:
        """Return the setting that says where the last step ends."""
        zero = self.last == LAST[0]
        if self.solver in ("ddim", "plms"):
            return {"set_alpha_to_one": zero}
        if self.solver == "heun" and zero or self.solver.startswith("deis") and not zero:
            return {}  # the only end that they have
        return {"final_sigmas_type": self.last}


def timesteps_of(grid: str, dense: Sampler, steps: int, computed: Sequence[float] = ()) -> tuple[int, ...]:
    """Return the timesteps of a grid that is given one by one, falling.

    grid: its name.
    dense: the dense run's sampler.
    steps: how many there must be.
    computed: the timesteps of the grid "computed". Of too many, as many are taken, evenly spread.

    Raises `DipgoError` where there are no `steps` different ones.
    """
    whole = np.unique(dense.timesteps)[::-1]
    if grid == COMPUTED:
        chosen = np.sort(computed)[::-1][np.linspace(0, len(computed) - 1, steps).round().astype(int)]
    elif grid in ("part", "reach"):
        choose = spread if grid == "part" else reaching
        chosen = whole[choose(min(steps, len(whole)), len(whole))]
    else:
        kind = "StableDiffusionXLSigmas" if grid == "ays-xl" else "StableDiffusionSigmas"
        chosen = _aligned(AysSchedules[kind][:-1], dense, steps)
    found = tuple(int(timestep) for timestep in np.unique(np.round(chosen))[::-1])
    if len(found) != steps:
        raise DipgoError(f"the grid {grid!r} has {len(found)} timesteps here, not {steps}")
    return found


def _aligned(sigmas: Sequence[float], dense: Sampler, steps: int) -> np.ndarray:
    """Return the timesteps of a list of noise levels which, as its authors advise, is interpolated in its logarithm."""
    levels = np.interp(np.linspace(0, 1, steps), np.linspace(0, 1, len(sigmas)), np.log(sigmas))
    signal = dense.scheduler().alphas_cumprod.double().numpy()
    signal = signal[signal > 0]
    return np.interp(levels, np.log((1 - signal) / signal) / 2, np.arange(len(signal)))


def solve(
    configurations: Iterable[Configuration], dense: Sampler, calls: int, computed: Sequence[float] = ()
) -> tuple[dict[str, Solver], dict[str, str]]:
    """Return the tables of configurations by their names, and the reason for each that is refused.

    Raises `DipgoError` where all are refused.
    """
    solvers, refused = {}, {}
    for configuration in configurations:
        try:
            solvers[str(configuration)] = configuration.solved(dense, calls, computed)
        except DipgoError as error:
            refused[str(configuration)] = str(error)
    if not solvers:
        raise DipgoError(f"no configuration suits: {next(iter(refused.values()), 'none is asked for')}")
    return solvers, refused


@dataclass(frozen=True)
class Trial:
    """Pictures that solvers draw, and the dense run's pictures of the same noise."""

    context: PlanContext
    inputs: tuple[list[str], list[int]]
    dense: torch.Tensor
    """[n, 3, h, w], in 0..255."""

    @classmethod
    def of(cls, context: PlanContext, settings: Pictures) -> Trial:
        inputs = settings.drawn(context.studio)
        return cls(context, inputs, _bytes(context.studio.images(*inputs)))

    def first(self, count: int) -> Trial:
        captions, seeds = self.inputs
        return replace(self, inputs=(captions[:count], seeds[:count]), dense=self.dense[:count])

    @torch.no_grad()
    def psnr(self, solvers: Sequence[Solver]) -> list[float]:
        """Return the mean PSNR of each solver's pictures to the dense run's, in dB. Solvers may differ in calls."""
        studio = self.context.studio
        pictures: Inputs = studio.pictures(*self.inputs)
        diffusion = Diffusion(self.context.denoiser, self.context.sampler, studio.guidance)
        found = []
        for calls in sorted({solver.calls for solver in solvers}):
            alike = [index for index, solver in enumerate(solvers) if solver.calls == calls]
            drawn = rollout_solvers(diffusion, [solvers[index] for index in alike], pictures, 2 * studio.at_once)
            for index, latents in zip(alike, drawn, strict=True):
                error = (_bytes(studio.decode(latents)) - self.dense).square().mean(dim=(1, 2, 3))
                found.append((index, (10 * torch.log10(255**2 / error.clamp(min=1e-6))).mean().item()))
        return [value for _, value in sorted(found)]


def _bytes(images: torch.Tensor) -> torch.Tensor:
    """Return images as they are written, in 0..255."""
    return (images.clamp(0, 1) * 255).round().double()


def best(scores: Mapping[str, float], count: int) -> list[str]:
    """Return the names of the highest scores; a score that is no number is the lowest."""
    return sorted(scores, key=lambda name: -scores[name] if scores[name] == scores[name] else float("inf"))[:count]


@dataclass(frozen=True)
class Params:
    """The parameters of `plan`."""

    calls: int
    """The most denoiser calls of a picture."""
    solver: str
    """A name in `SOLVERS`."""
    grid: str
    """A name in `GRIDS`, but not "computed"."""
    last: str = LAST[0]
    """A name in `LAST`."""


def plan(context: PlanContext, params: Params) -> Plan:
    """Run the solver on the grid."""
    given = asdict(params)
    calls = given.pop("calls")
    configuration = Configuration(**given)
    if params.grid == COMPUTED:
        raise DipgoError("the grid 'computed' needs another method's timesteps; take tuned_steps")
    configuration.solved(context.sampler, calls)  # what diffusers refuses is refused here
    return replace(context, sampler=configuration.sampler(context.sampler, calls)).dense()
