"""Solvers as tables: what the denoiser sees at each call, as a combination of the noise and the predictions so far.

A deterministic sampler does no more than add up. So its whole run is one table of numbers, whatever its formula: DDIM,
PLMS, DPM-Solver++, DEIS, UniPC, Heun. The table is read off the sampler itself, it runs side by side with other tables
in one batch, and it can be learned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import diffusers
import numpy as np
import torch

from dipgo.errors import DipgoError
from dipgo.sampling import Diffusion, Inputs, Sampler, predict


@dataclass(frozen=True)
class Solver:
    """A deterministic sampler's run as a table."""

    timesteps: tuple[float, ...]
    """The timestep that the denoiser is told at each call."""
    weights: tuple[tuple[float, ...], ...]
    """[calls + 1, calls + 1]. Row i gives the denoiser's input at call i, and the last row the final latents. Column 0
    weighs the noise, and column j the prediction of call j - 1; a call cannot use what comes later."""

    def __post_init__(self) -> None:
        calls, table = len(self.timesteps), np.array(self.weights, dtype=float)
        if not calls or table.shape != (calls + 1, calls + 1):
            raise DipgoError(f"a solver of {calls} calls needs {calls + 1} rows of {calls + 1} weights")
        if not np.isfinite(table).all() or not np.isfinite(self.timesteps).all():
            raise DipgoError("a solver's timesteps and weights must be finite numbers")
        if np.triu(table, 1).any():
            raise DipgoError("a solver's call uses a prediction that comes later")

    @classmethod
    def of(cls, sampler: Sampler) -> Solver:
        """Return the table of a sampler that adds no noise and does not clip.

        Raises `DipgoError` where it does, or where its numbers are not finite.
        """
        scheduler = sampler.scheduler()
        if getattr(scheduler.config, "thresholding", False) or getattr(scheduler.config, "clip_sample", False):
            raise DipgoError(f"{sampler.name} clips its predictions, so that it is no table of weights")
        calls = len(scheduler.timesteps)
        unit = torch.eye(calls + 1).view(calls + 1, 1, -1, 1, 1)
        latents, rows = unit[0] * scheduler.init_noise_sigma, []
        for call, timestep in enumerate(scheduler.timesteps):
            rows.append(scheduler.scale_model_input(latents, timestep))
            latents = scheduler.step(unit[call + 1], timestep, latents, return_dict=False)[0]
        rows.append(latents)
        table = torch.stack([row.flatten() for row in rows]).double()
        return cls(tuple(map(float, scheduler.timesteps)), tuple(map(tuple, table.tolist())))

    @property
    def calls(self) -> int:
        """The number of denoiser calls."""
        return len(self.timesteps)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `Solver.from_dict` reads them."""
        return {"timesteps": list(self.timesteps), "weights": [list(row) for row in self.weights]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Solver:
        """Return the solver that `to_dict` described."""
        return cls(tuple(data["timesteps"]), tuple(map(tuple, data["weights"])))


@dataclass(frozen=True)
class TableSampler(Sampler):
    """A sampler that runs a solver's table."""

    solver: Solver = field(kw_only=True)

    def _kind(self) -> tuple[str, Mapping[str, Any]]:
        return TableScheduler.__name__, {}

    def _grid(self) -> TableScheduler:
        return TableScheduler(self.solver, self.config)


class TableScheduler:
    """A solver's run with the interface of a diffusers scheduler."""

    def __init__(self, solver: Solver, config: Mapping[str, Any]) -> None:
        """Begin a run.

        solver: the table.
        config: the model's scheduler configuration, which gives the noise schedule.
        """
        self.timesteps = torch.tensor(solver.timesteps)
        self.weights = torch.tensor(solver.weights)
        self.num_inference_steps = solver.calls
        self.init_noise_sigma = solver.weights[0][0]
        self.alphas_cumprod = diffusers.DDIMScheduler.from_config(dict(config)).alphas_cumprod
        self.known: list[torch.Tensor] = []

    def scale_model_input(self, sample: torch.Tensor, timestep: Any) -> torch.Tensor:
        """Return the sample, which is scaled already."""
        return sample

    def step(self, prediction: torch.Tensor, timestep: Any, sample: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        """Return what the denoiser sees next or, after the last call, the final latents."""
        if not self.known:
            self.known.append(sample / self.init_noise_sigma)
        self.known.append(prediction)
        return (_combined(self.weights[len(self.known) - 1], self.known),)


def _combined(weights: torch.Tensor, values: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the sum of values by the first weights of a row; weights [..., K] go along the values' first axes."""
    spread = weights.to(values[0]).unbind(-1)
    given = [weight.view(*weight.shape, *[1] * (values[0].ndim - weight.ndim)) for weight in spread]
    return sum(weight * value for weight, value in zip(given, values, strict=False))


@torch.no_grad()
def rollout_solvers(
    diffusion: Diffusion, solvers: Sequence[Solver], inputs: Inputs, together: int = 200
) -> torch.Tensor:
    """Draw the same pictures by several solvers side by side: final latents [solvers, n, c, h, w].

    diffusion: the denoiser and the guidance scale; its sampler is not used.
    solvers: tables of one number of calls.
    inputs: noise and conditioning of n pictures.
    together: how many pictures run in one batch.
    """
    size = max(1, together // len(inputs))
    parts = [solvers[start : start + size] for start in range(0, len(solvers), size)]
    return torch.cat([_rollout(diffusion, part, inputs) for part in parts])


@torch.no_grad()
def trajectory(diffusion: Diffusion, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the denoiser sees at each call of the diffusion's own sampler and at last the final latents,
    [calls + 1, n, c, h, w], and what it predicts, [calls, n, c, h, w]."""
    solver = Solver.of(diffusion.sampler)
    noise, *predictions = _known(diffusion, [solver], inputs)
    known = [noise[0], *(prediction[0] for prediction in predictions)]
    weights = torch.tensor(solver.weights)
    return torch.stack([_combined(row, known) for row in weights]), torch.stack(known[1:])


def _rollout(diffusion: Diffusion, solvers: Sequence[Solver], inputs: Inputs) -> torch.Tensor:
    weights = torch.tensor([solver.weights[-1] for solver in solvers], device=inputs.noise.device)
    return _combined(weights, _known(diffusion, solvers, inputs))


def _known(diffusion: Diffusion, solvers: Sequence[Solver], inputs: Inputs) -> list[torch.Tensor]:
    """Return the noise and the predictions of all calls, each [solvers, n, c, h, w]."""
    count, repeated = len(solvers), inputs.repeated(len(solvers))
    weights = torch.tensor([solver.weights for solver in solvers], device=inputs.noise.device)
    times = torch.tensor([solver.timesteps for solver in solvers], device=inputs.noise.device)
    known = [inputs.noise.unsqueeze(0).expand(count, *inputs.noise.shape)]
    for call in range(solvers[0].calls):
        sample = _combined(weights[:, call], known).transpose(0, 1).flatten(0, 1)
        timesteps = times[:, call].repeat(len(inputs))
        prediction = predict(diffusion, sample, timesteps, repeated.conditioning)
        known.append(prediction.unflatten(0, (-1, count)).transpose(0, 1))
    return known
