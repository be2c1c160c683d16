"""A rival: timesteps and solver coefficients of few steps, learned together.

It works in the manner of LD3 (arXiv 2405.15506), which learns timesteps by gradient, and of S4S (arXiv 2502.17423) and
DC-Solver (arXiv 2409.03755), which learn a solver's coefficients. It starts from the best stock configuration. Every
step may change what it makes of the latents, of the last predictions, and the timestep that the denoiser is told; so
the noise levels of the steps move as well. With so few unknowns Gauss-Newton steps are taken instead of gradient steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from baselines.few_steps import Configuration, best
from baselines.learned_forecast import Learning as ForecastLearning
from baselines.plan import Plan, PlanContext
from baselines.preparation import Estimate, Lesson, Pictures, Preparation, Step
from baselines.tuned_steps import Params as TuningParams
from baselines.tuned_steps import StepTuning, Tuning
from baselines.tuned_steps import prepares as tunings
from dipgo import Diffusion, Schedule
from dipgo.errors import DipgoError
from dipgo.newton import DAMPING, damped_steps, log_loss
from dipgo.solver import Solver, TableSampler, rollout_solvers
from dipgo.state import State, copied

NUDGE = 0.01  # the change of an unknown for a derivative by differences
TIME = 200.0  # timesteps that an unknown of 1 stands for
GAIN = 0.002  # about 0.01 dB: a round that lowers the loss by less is not yielded and is the last
BATCHES = 2  # as many pictures run together, unseen, as this many batches hold
EXAMPLES = (
    {
        "calls": 3,
        "learn": {"pictures": 2, "rounds": 1},
        "tune": {"pictures": 2, "screened": 1, "solver": "deis-2"},
        "forecast": {"rounds": 1, "pictures": 2},
    },
)


@dataclass(frozen=True)
class Learning(Pictures):
    """The settings of the learning, and the pictures to learn from."""

    rounds: int = 8
    """Rounds at most."""
    memory: int = 3
    """How many of the last predictions a step may weigh anew."""

    def __post_init__(self) -> None:
        for name in ("rounds", "memory"):
            if getattr(self, name) < 1:
                raise DipgoError(f"learn.{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True)
class Unknowns:
    """What is learned of a solver, as changes to a first table.

    A table is taken apart into steps: the next latents are the present ones times a factor, and the predictions times
    coefficients. So a change in one step carries on through all later ones.
    """

    start: Solver
    memory: int
    """How many of the last predictions a step may weigh anew."""

    @property
    def size(self) -> int:
        """The number of unknowns."""
        return 2 * self.start.calls + int(self._free.sum())

    @property
    def _free(self) -> np.ndarray:
        """Which coefficients are unknown, bool [calls, calls]: step i may weigh anew the predictions before it."""
        back = np.subtract.outer(np.arange(self.start.calls), np.arange(self.start.calls))
        return (back >= 0) & (back < self.memory)

    def solver(self, values: np.ndarray) -> Solver:
        """Return the table with the unknowns at these values [size]; zeros give the first table."""
        calls, free = self.start.calls, self._free
        table = np.array(self.start.weights)
        factors = table[1:, 0] / table[:-1, 0]
        coefficients = table[1:, 1:] - factors[:, None] * table[:-1, 1:]
        changes = np.zeros_like(coefficients)
        changes[free] = values[2 * calls :]
        factors, coefficients = factors + values[:calls], coefficients + changes
        for step in range(calls):
            table[step + 1, 0] = factors[step] * table[step, 0]
            table[step + 1, 1:] = factors[step] * table[step, 1:] + coefficients[step]
        timesteps = np.clip(np.array(self.start.timesteps) + TIME * values[calls : 2 * calls], 0, None)
        return Solver(tuple(timesteps.tolist()), tuple(map(tuple, table.tolist())))


@dataclass(frozen=True)
class SolverLearning(Lesson):
    """A solver fitted to dense runs, from the best stock configuration on."""

    settings: Learning
    calls: int
    """The most denoiser calls of a picture."""
    tuning: StepTuning
    """Gives the configuration to start from."""
    needs: Mapping[str, Preparation] = field(default_factory=dict)

    folder, title = "solvers", "solver"

    def identity(self) -> dict[str, Any]:
        return {"calls": self.calls, **asdict(self.settings)}

    def macs(self, run: Estimate) -> float:
        settings, calls = self.settings, round(run.share * run.calls)
        tried = settings.rounds * (calls * (2 + settings.memory) + len(DAMPING))
        return settings.pictures * run.macs * (1 + tried * run.share)

    @property
    def total(self) -> int:
        return self.settings.rounds + 1

    def steps(self, context: PlanContext, state: State | None) -> Iterator[Step]:
        settings, studio = self.settings, context.studio
        pictures = studio.pictures(*settings.drawn(studio))
        diffusion = Diffusion(context.denoiser, context.sampler, studio.guidance)
        run = partial(rollout_solvers, diffusion, inputs=pictures, together=BATCHES * studio.at_once)
        dense = run([Solver.of(context.sampler)])
        unknowns = Unknowns(self._start(context), settings.memory)

        def errors(tried: list[np.ndarray]) -> torch.Tensor:
            return (run([unknowns.solver(values) for values in tried]) - dense).flatten(2).double()

        def after(number: int) -> Step:
            kept = State(copied({"values": torch.tensor(values), "error": error}), {"round": number})
            solver = unknowns.solver(values).to_dict()
            return Step(
                {"loss": log_loss(error)},
                lambda: kept,
                lambda log: {"solver": solver, "losses": [s["loss"] for s in log]},
            )

        if state:
            done, values = state.data["round"], state.tensors["values"].numpy()
            error = state.tensors["error"].to(dense.device)
        else:
            done, values = 0, np.zeros(unknowns.size)
            error = errors([values])[0]
        yield after(done)
        for number in range(done + 1, settings.rounds + 1):
            nudged = [values + NUDGE * direction for direction in np.eye(unknowns.size)]
            slopes = (errors(nudged) - error) / NUDGE
            tried = [values + step for step in damped_steps(error, slopes)]
            found = errors(tried)
            losses = np.nan_to_num([log_loss(each) for each in found], nan=np.inf)
            place = int(losses.argmin())
            if log_loss(error) - losses[place] < GAIN:
                return
            values, error = tried[place], found[place]
            yield after(number)

    def _start(self, context: PlanContext) -> Solver:
        """Return the table of the chosen configuration."""
        kept = self.tuning.make(context)
        return Configuration(*best(kept["final"], 1)[0].split(", ")).solved(
            context.sampler, self.calls, sorted(set(kept["timesteps"]))
        )

    def read(self, result: Mapping[str, Any]) -> Solver:
        return Solver.from_dict(result["solver"])

    def account(self, kept: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"solver": {**kept["solver"], "losses": kept["losses"]}}


def _result(solver: Mapping[str, Any], log: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    return {"solver": solver, "losses": [shown["loss"] for shown in log]}


@dataclass(frozen=True)
class Params:
    """The parameters of `plan`."""

    calls: int
    """The most denoiser calls of a picture."""
    learn: Learning = Learning()
    """The settings of the learning."""
    tune: Tuning = Tuning()
    """The settings of the choice that it starts from."""
    forecast: ForecastLearning = ForecastLearning()
    """The settings of the learned forecast whose timesteps that choice may take."""


def prepares(params: Params) -> tuple[Preparation, ...]:
    """A configuration is chosen as `tuned_steps` does, and then the solver is learned."""
    *first, tuning = tunings(TuningParams(params.calls, params.tune, params.forecast))
    return *first, tuning, SolverLearning(params.learn, params.calls, tuning, {"tuning": tuning})


def plan(context: PlanContext, params: Params) -> Plan:
    """Run the learned solver."""
    solver = prepares(params)[-1].make(context)
    sampler = TableSampler("learned solver", context.sampler.config, solver.calls, solver=solver)
    schedule = Schedule.dense(context.graph.sites, solver.calls)
    return Plan(sampler, schedule, context.costs)
