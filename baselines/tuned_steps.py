"""A control: the best of many stock few-step configurations, chosen on training captions.

Every solver of `few_steps` is tried on every grid and to both ends, by PSNR to the dense run's pictures: first on a few
pictures, then the best of them on all. So a learned method is held against what a careful user gets from diffusers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Any

from baselines.few_steps import COMPUTED, GRIDS, LAST, SOLVERS, Configuration, Trial, best, solve
from baselines.learned_forecast import ForecastLearning, Learning
from baselines.learned_forecast import Params as ForecastParams
from baselines.learned_forecast import prepares as forecasts
from baselines.plan import Plan, PlanContext
from baselines.preparation import Estimate, Lesson, Pictures, Preparation, Step
from dipgo.errors import DipgoError
from dipgo.solver import Solver
from dipgo.state import State

CHUNK = 24  # configurations that are tried in a step
EXAMPLES = (
    {"calls": 3, "tune": {"pictures": 2, "screened": 1, "solver": "deis-2"}, "learn": {"rounds": 1, "pictures": 2}},
)


@dataclass(frozen=True)
class Tuning(Pictures):
    """Which configurations are tried, on which pictures."""

    screened: int = 4
    """How many pictures each configuration is first tried on."""
    finalists: int = 40
    """How many of the best are tried on all pictures."""
    solver: str | None = None
    """The one solver whose grids and ends are tried; None for all solvers."""

    def __post_init__(self) -> None:
        if not 1 <= self.screened <= self.pictures:
            raise DipgoError(
                f"tune.screened is {self.screened}; it must lie between 1 and the {self.pictures} pictures"
            )
        if self.finalists < 1:
            raise DipgoError(f"tune.finalists is {self.finalists}; it must be at least 1")
        self.configurations  # noqa: B018  (an unknown solver is refused here)

    @property
    def configurations(self) -> list[Configuration]:
        """All that are tried, as far as their schedulers take them."""
        solvers = SOLVERS if self.solver is None else (self.solver,)
        return [Configuration(*parts) for parts in product(solvers, GRIDS, LAST)]


@dataclass(frozen=True)
class StepTuning(Lesson):
    """The choice among few-step configurations."""

    settings: Tuning
    calls: int
    """The most denoiser calls of a picture."""
    forecast: ForecastLearning
    """Gives the timesteps of the grid "computed"."""
    needs: Mapping[str, Preparation] = field(default_factory=dict)

    folder, title = "few_steps", "tuning of few steps"

    def identity(self) -> dict[str, Any]:
        return {"calls": self.calls, **asdict(self.settings)}

    def macs(self, run: Estimate) -> float:
        settings, count = self.settings, len(self.settings.configurations)
        tried = count * settings.screened + min(count, settings.finalists) * settings.pictures
        return run.macs * (settings.pictures + tried * run.share)

    @property
    def total(self) -> int:
        count = len(self.settings.configurations)
        return -(-count // CHUNK) - (-min(count, self.settings.finalists) // CHUNK)

    def steps(self, context: PlanContext, state: State | None) -> Iterator[Step]:
        settings = self.settings
        computed = self._computed(context)
        solvers, refused = solve(settings.configurations, context.sampler, self.calls, computed)
        scores = state.data["scores"] if state else {"screened": {}, "final": {}}
        trial = Trial.of(context, settings)

        def step() -> Step:
            found = {stage: dict(values) for stage, values in scores.items()}
            result = {**found, "refused": refused, "timesteps": _timesteps(solvers, found["final"])}
            shown = {"psnr": max((found["final"] or found["screened"]).values())}
            return Step(shown, lambda: State({}, {"scores": found}), lambda log: result)

        if state:
            yield step()
        for stage, part in (("screened", trial.first(settings.screened)), ("final", trial)):
            names = list(solvers) if stage == "screened" else best(scores["screened"], settings.finalists)
            names = [name for name in names if name not in scores[stage]]
            for start in range(0, len(names), CHUNK):
                chunk = names[start : start + CHUNK]
                scores[stage] |= zip(chunk, part.psnr([solvers[name] for name in chunk]), strict=True)
                yield step()

    def _computed(self, context: PlanContext) -> list[float]:
        """Return the timesteps at which the learned forecast computes."""
        schedule = self.forecast.make(context)
        return context.sampler.timesteps[~schedule.reuse.all(axis=1)].tolist()

    def account(self, kept: Mapping[str, Any]) -> Mapping[str, Any]:
        chosen = best(kept["final"], 1)[0]
        return {
            "few_steps": {
                "chosen": chosen,
                "timesteps": kept["timesteps"],
                "psnr_on_training": kept["final"][chosen],
                "tried": len(kept["screened"]),
                "pictures": self.settings.pictures,
                "refused": kept["refused"],
            }
        }


def _timesteps(solvers: Mapping[str, Solver], scores: Mapping[str, float]) -> list[float]:
    """Return the timesteps of the best solver; none where nothing is scored yet."""
    return [timestep for name in best(scores, 1) for timestep in solvers[name].timesteps]


@dataclass(frozen=True)
class Params:
    """The parameters of `plan`."""

    calls: int
    """The most denoiser calls of a picture."""
    tune: Tuning = Tuning()
    """The settings of the choice."""
    learn: Learning = Learning()
    """The settings of the learned forecast that gives the grid "computed"."""


def prepares(params: Params) -> tuple[Preparation, ...]:
    """A forecast is learned for its timesteps, and then the configuration is chosen."""
    forecast, *_ = forecasts(ForecastParams(params.calls, params.learn))
    return forecast, StepTuning(params.tune, params.calls, forecast, {"forecast": forecast})


def plan(context: PlanContext, params: Params) -> Plan:
    """Run the chosen configuration."""
    _, tuning = prepares(params)
    result = tuning.make(context)
    chosen = Configuration(*best(result["final"], 1)[0].split(", "))
    computed = sorted(set(result["timesteps"])) if chosen.grid == COMPUTED else ()
    return replace(context, sampler=chosen.sampler(context.sampler, params.calls, computed)).dense()
