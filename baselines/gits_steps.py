"""A rival: timesteps by dynamic programming over the trajectory's error, in the manner of GITS (arXiv 2405.11326).

The dense run's trajectory says how far a single Euler step from each of its points lands from each later one. The
path of least summed error gives the timesteps. They go to the stock solver that draws nearest to the dense run with
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch

from baselines.few_steps import COMPUTED, LAST, SOLVERS, Configuration, Trial, best, solve
from baselines.plan import Plan, PlanContext
from baselines.preparation import Estimate, Lesson, Pictures, Preparation, Step
from dipgo import Diffusion, Inputs
from dipgo.errors import DipgoError
from dipgo.solver import trajectory
from dipgo.state import State

EXAMPLES = ({"calls": 3, "learn": {"pictures": 2}},)


@dataclass(frozen=True)
class Learning(Pictures):
    """The settings of the dynamic programming, and the pictures whose trajectories it looks at."""

    gamma: float = 1.15
    """What a step's error grows by at every later step, the paper's coefficient."""


@dataclass(frozen=True)
class PathLearning(Lesson):
    """Timesteps of least trajectory error, and the solver that uses them best."""

    settings: Learning
    calls: int
    """How many calls a picture takes at most."""

    folder, title, total = "gits", "timesteps by dynamic programming", 1

    def identity(self) -> dict[str, Any]:
        return {"calls": self.calls, **asdict(self.settings)}

    def macs(self, run: Estimate) -> float:
        return self.settings.pictures * run.macs * (2 + len(SOLVERS) * len(LAST) * run.share)

    def steps(self, context: PlanContext, state: State | None) -> Iterator[Step]:
        settings = self.settings
        trial = Trial.of(context, settings)
        diffusion = Diffusion(context.denoiser, context.sampler, context.studio.guidance)
        timesteps, costs = euler_errors(diffusion, context.studio.pictures(*trial.inputs))
        path = shortest(costs, self.calls, settings.gamma)
        chosen = timesteps[path].tolist()
        configurations = [Configuration(solver, COMPUTED, last) for solver, last in product(SOLVERS, LAST)]
        solvers, refused = solve(configurations, context.sampler, self.calls, chosen)
        scores = dict(zip(solvers, trial.psnr(list(solvers.values())), strict=True))
        result = {"timesteps": chosen, "final": scores, "refused": refused}
        yield Step({"psnr": max(scores.values())}, lambda: State({}, {}), lambda log: result)

    def account(self, kept: Mapping[str, Any]) -> Mapping[str, Any]:
        chosen = best(kept["final"], 1)[0]
        found = {"chosen": chosen, "timesteps": kept["timesteps"], "psnr_on_training": kept["final"][chosen]}
        return {"gits": found | {"tried": len(kept["final"]), "refused": kept["refused"]}}


@torch.no_grad()
def euler_errors(diffusion: Diffusion, inputs: Inputs) -> tuple[np.ndarray, np.ndarray]:
    """Return the timesteps of the dense run's points [p], falling, and the error of one Euler step from each point to
    each later one, [p, p + 1]: the root mean square over pictures and numbers. The last column is the final latents.
    """
    points, predictions = trajectory(diffusion, inputs)
    given = diffusion.sampler.timesteps
    # PLMS comes to its second timestep twice; the second time it is nearer to the truth.
    last = {timestep: call for call, timestep in enumerate(given.tolist())}
    order = sorted(last.values())
    scheduler = diffusion.sampler.scheduler()
    signal = scheduler.alphas_cumprod.double()
    end = signal[0] if diffusion.sampler.config.get("set_alpha_to_one") is False else signal.new_tensor(1.0)
    levels = torch.cat([signal[given[order].astype(int)], end.view(1)])
    targets = points[[*order, len(points) - 1]].double()
    errors = np.full((len(order), len(order) + 1), np.inf)
    for place, call in enumerate(order):
        clean, noise = parts(diffusion.sampler.config, points[call].double(), predictions[call].double(), levels[place])
        for later in range(place + 1, len(order) + 1):
            landed = levels[later].sqrt() * clean + (1 - levels[later]).sqrt() * noise
            errors[place, later] = (landed - targets[later]).square().mean().sqrt().item()
    return given[order], errors


def parts(
    config: Mapping[str, Any], sample: torch.Tensor, prediction: torch.Tensor, level: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the clean picture and the noise that a prediction tells of a sample; level: the share of signal, 0..1."""
    signal, noise = level.sqrt(), (1 - level).sqrt()
    kind = config.get("prediction_type", "epsilon")
    if kind == "v_prediction":
        return signal * sample - noise * prediction, noise * sample + signal * prediction
    if kind == "sample":
        return prediction, (sample - signal * prediction) / noise
    return (sample - noise * prediction) / signal, prediction


def shortest(errors: np.ndarray, calls: int, gamma: float) -> list[int]:
    """Return the points of the path of least summed error from point 0 to the end in `calls` steps.

    errors: from each point to each later point and to the end, [p, p + 1].
    calls: how many steps the path has.
    gamma: what an error grows by at every later step.
    """
    count = len(errors)
    if not 1 <= calls <= count:
        raise DipgoError(f"calls is {calls}; it must lie between 1 and {count}")
    ahead, following = errors[:, count].copy(), []
    for _ in range(calls - 1):
        through = errors[:, :count] + gamma * ahead
        following.append(through.argmin(axis=1))
        ahead = through.min(axis=1)
    path = [0]
    for step in reversed(following):
        path.append(int(step[path[-1]]))
    return path


@dataclass(frozen=True)
class Params:
    """The parameters of `plan`."""

    calls: int
    """The most denoiser calls of a picture."""
    learn: Learning = Learning()
    """The settings of the learning."""


def prepares(params: Params) -> tuple[Preparation, ...]:
    """The timesteps are learned, and the solver is chosen."""
    return (PathLearning(params.learn, params.calls),)


def plan(context: PlanContext, params: Params) -> Plan:
    """Run the chosen solver at the learned timesteps."""
    result = prepares(params)[0].make(context)
    chosen = Configuration(*best(result["final"], 1)[0].split(", "))
    sampler = chosen.sampler(context.sampler, params.calls, result["timesteps"])
    return replace(context, sampler=sampler).dense()
