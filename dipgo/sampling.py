"""Samplers and the one guided denoising loop, differentiable, for any diffusers scheduler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from inspect import signature
from typing import Any

import diffusers
import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from dipgo.errors import DipgoError
from dipgo.schedule import Schedule
from dipgo.schedulers import SCHEDULERS, STOCHASTIC

PREDICTIONS = ("epsilon", "v_prediction", "sample")  # what a denoiser may predict, by diffusers' names
OTHER_PROCESSES = ("shift", "sigma_data")  # settings of flow matching, and of EDM and consistency models


@dataclass(frozen=True)
class Sampler:
    """A scheduler at a step count."""

    name: str
    """A key of `SCHEDULERS`."""
    config: Mapping[str, Any]
    """The model's scheduler configuration: noise schedule, spacing, prediction type."""
    steps: int
    stride: int = 1
    """k makes only every k-th call of the grid while each step still goes one grid step: the broken reading of "skip
    every k-th step", kept because a table row asks for it."""

    def __post_init__(self) -> None:
        self._kind()  # an unknown name is refused here
        for name, most in (("steps", self.config.get("num_train_timesteps", 1000)), ("stride", self.steps)):
            value = getattr(self, name)
            if not isinstance(value, int) or not 1 <= value <= most:
                raise DipgoError(f"{name} is {value!r}; it must be a whole number between 1 and {most}")
        self._check_prediction()

    def _check_prediction(self) -> None:
        """Raise where the model predicts what these schedulers do not know: flow matching, EDM, consistency models."""
        kind, predicted = self.config.get("_class_name"), self.config.get("prediction_type", "epsilon")
        no_betas = kind is not None and self.config.keys().isdisjoint(("beta_start", "trained_betas"))
        other = not self.config.keys().isdisjoint(OTHER_PROCESSES) or self.config.get("use_flow_sigmas")
        if no_betas or other or predicted not in PREDICTIONS:
            raise DipgoError(
                f"{self.name} samples models that predict noise ({', '.join(PREDICTIONS)}), but this configuration"
                f"{f' of {kind}' if kind else ''} is for "
                + (f"the prediction {predicted!r}" if predicted not in PREDICTIONS else "flow matching or the like")
                + "; keep the pipeline's scheduler and its stock call"
            )

    def scheduler(self) -> Any:
        """Return a fresh diffusers scheduler with its timesteps set."""
        scheduler = self._grid()
        scheduler.timesteps = scheduler.timesteps[:: self.stride]
        return scheduler

    def _kind(self) -> tuple[str, Mapping[str, Any]]:
        """Return the class in diffusers, and its settings that override the model's configuration."""
        return SCHEDULERS[self.name]

    def _grid(self) -> Any:
        """Return the scheduler with all timesteps, whatever the stride."""
        kind, overrides = self._kind()
        scheduler = getattr(diffusers, kind).from_config({**self.config, **overrides})
        scheduler.set_timesteps(self.steps)
        return scheduler

    @cached_property
    def timesteps(self) -> np.ndarray:
        """The timestep of each denoiser call, [calls]."""
        return self.scheduler().timesteps.numpy()

    @property
    def noise_ratios(self) -> np.ndarray:
        """The noise's standard deviation over the signal's scale at each denoiser call, float [calls]. It is infinite
        where a noise schedule begins at zero SNR.

        It is the time in which predictions are extrapolated. Measured on one U-Net, forecasts that reach far stray less
        in it than in timesteps or in its logarithm; on a transformer over 50 DDIM steps, timesteps were better.
        """
        signal = self.scheduler().alphas_cumprod.double().numpy()[self.timesteps.astype(int)]
        with np.errstate(divide="ignore"):
            return np.sqrt((1 - signal) / signal)

    @property
    def call_steps(self) -> np.ndarray:
        """The step that each denoiser call belongs to, int [calls].

        Each call is a step, also where uneven sigmas round neighbours to one timestep. PLMS alone calls the denoiser
        twice at its second timestep, so that 50 steps are 51 calls: 0, 1, 1, 2, ...
        """
        grid = self._grid()
        steps = np.arange(len(grid.timesteps))
        if len(steps) > grid.num_inference_steps:
            steps = np.concatenate([[0], np.cumsum(np.diff(grid.timesteps.numpy()) != 0)])
        return np.unique(steps[:: self.stride], return_inverse=True)[1]

    @property
    def calls(self) -> int:
        """Denoiser calls of one run."""
        return len(self.timesteps)

    @property
    def charged_steps(self) -> int:
        """The number of steps, which is what the paper charges: PLMS at 50 steps costs 50 calls, not 51. Of the two
        calls of one step the paper charges the dearer one."""
        return int(self.call_steps[-1]) + 1

    def check(self, schedule: Schedule) -> None:
        """Raise where a schedule was made for another sampler: another number of calls, or other timesteps."""
        here = f"{self.name} at {self.steps} steps"
        if schedule.calls != self.calls:
            raise DipgoError(
                f"schedule has {schedule.calls} calls, but {here} makes {self.calls}; "
                "it was made for another step count or scheduler"
            )
        if schedule.timesteps is not None:
            other = np.flatnonzero(~np.isclose(schedule.timesteps, self.timesteps, rtol=1e-4, atol=1e-3))
            if len(other):
                made, calls = schedule.timesteps[other[0]], self.timesteps[other[0]]
                raise DipgoError(
                    f"schedule was made for another sampler: its call {other[0]} is at timestep {made:g}, but {here} "
                    f"makes it at {calls:g}; use the scheduler, step count and spacing that it was made with"
                )

    def stamped(self, schedule: Schedule) -> Schedule:
        """Return the schedule with this sampler's timesteps, so that no other sampler runs it unnoticed."""
        self.check(schedule)
        return replace(schedule, timesteps=self.timesteps)


@dataclass(frozen=True)
class StockSampler(Sampler):
    """A scheduler of diffusers in any of its configurations. Its name is free, and every call is charged."""

    settings: Mapping[str, Any] = field(kw_only=True)
    """A part of diffusers' own scheduler configuration, which overrides the model's: `_class_name`, the order of the
    solver, the spacing, which sigmas. A setting that the class does not take is refused."""
    grid: tuple[int, ...] | None = field(default=None, kw_only=True)
    """The timestep of each step, falling; None for those that the settings give."""

    def __post_init__(self) -> None:
        super().__post_init__()
        kind, settings = self._kind()
        known = signature(getattr(diffusers, kind).__init__).parameters
        if other := [name for name in settings if name not in known]:
            raise DipgoError(f"{kind} has no setting {', '.join(other)}")
        if self.grid is not None and (len(self.grid) != self.steps or (np.diff(self.grid) >= 0).any()):
            raise DipgoError(f"a grid of {self.steps} steps needs as many timesteps that fall, not {self.grid}")

    def _kind(self) -> tuple[str, Mapping[str, Any]]:
        settings = dict(self.settings)
        return settings.pop("_class_name"), settings

    def _grid(self) -> Any:
        kind, overrides = self._kind()
        scheduler = getattr(diffusers, kind).from_config({**self.config, **overrides})
        if self.grid is None:
            scheduler.set_timesteps(self.steps)
        elif "timesteps" in signature(scheduler.set_timesteps).parameters:
            scheduler.set_timesteps(timesteps=list(self.grid))
        elif hasattr(scheduler, "sigmas"):  # the solver goes by the sigmas alone, wherever they come from
            scheduler.set_timesteps(self.steps)
            ratios = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt()
            scheduler.timesteps = torch.tensor(self.grid)
            scheduler.sigmas = torch.cat([ratios[scheduler.timesteps], scheduler.sigmas[-1:]])
        else:
            raise DipgoError(f"{kind} takes no timesteps of a caller's choice")
        return scheduler

    @property
    def call_steps(self) -> np.ndarray:
        """Count every call as a step, also the second one of a step of Heun's."""
        return np.arange(self.calls)


@dataclass(frozen=True, eq=False)
class Diffusion:
    """A model set up to draw: what stays the same from picture to picture."""

    denoiser: nn.Module
    """Called as diffusers' models are: `denoiser(sample, timestep=..., **conditioning, return_dict=False)[0]`."""
    sampler: Sampler
    guidance: float = 1.0
    """The scale of classifier-free guidance. Above 1 each call holds two branches, the unconditional one first."""

    @property
    def branches(self) -> int:
        """Guidance branches of a call."""
        return 2 if self.guidance > 1 else 1


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a sampler run starts from, for n pictures."""

    noise: torch.Tensor
    """Standard normal noise [n, c, h, w], as `initial_noise` makes it, on the denoiser's device."""
    conditioning: Mapping[str, Any]
    """Keyword arguments of the denoiser. Every tensor in it holds n rows, or with guidance 2n rows, the unconditional
    ones first."""
    seeds: Sequence[int] = ()
    """One seed a picture, for the noise that a stochastic sampler (LCM) adds at its steps. Others need none."""

    def __len__(self) -> int:
        return len(self.noise)

    def repeated(self, count: int) -> Inputs:
        """Return the inputs with each picture `count` times in a row."""

        def rows(value: Any) -> Any:
            return value.repeat_interleave(count, 0) if isinstance(value, torch.Tensor) and value.ndim else value

        seeds = [seed for seed in self.seeds for _ in range(count)]
        return Inputs(rows(self.noise), tree_map(rows, dict(self.conditioning)), seeds)


def rollout(diffusion: Diffusion, inputs: Inputs) -> torch.Tensor:
    """Draw: one full sampler run from noise to final latents [n, c, h, w].

    A denoiser in half precision sees rounded latents; the latents themselves and the guidance keep the noise's
    precision. Gradients flow unless the caller switches them off.

    Raises `DipgoError` where the conditioning has other rows than the guidance takes, or a stochastic sampler gets
    other than one seed a picture.
    """
    latents = inputs.noise
    _check_rows(diffusion, inputs)
    scheduler, noise = diffusion.sampler.scheduler(), {}
    if diffusion.sampler.name in STOCHASTIC:
        if len(inputs.seeds) != len(inputs):
            raise DipgoError(
                f"{diffusion.sampler.name} adds noise at its steps: pass one seed a picture, "
                f"not {len(inputs.seeds)} for {len(inputs)}"
            )
        noise["generator"] = [_after_initial_noise(seed, latents.shape[1:]) for seed in inputs.seeds]
    latents = latents * scheduler.init_noise_sigma
    on_device = scheduler.timesteps.to(latents.device)  # at once: one copy a call would have the GPU wait each time
    for timestep, timestep_there in zip(scheduler.timesteps, on_device, strict=True):
        sample = scheduler.scale_model_input(latents, timestep)
        prediction = predict(diffusion, sample, timestep_there.expand(len(sample)), inputs.conditioning)
        latents = scheduler.step(prediction, timestep, latents, return_dict=False, **noise)[0]
    return latents


def predict(
    diffusion: Diffusion, sample: torch.Tensor, timesteps: torch.Tensor, conditioning: Mapping[str, Any]
) -> torch.Tensor:
    """Return the guided prediction [n, c, h, w] of one denoiser call, in the sample's precision.

    diffusion: the denoiser and the guidance scale.
    sample: what the denoiser sees of each picture [n, c, h, w].
    timesteps: one a picture [n].
    conditioning: as in `Inputs`.
    """
    denoiser, branches = diffusion.denoiser, diffusion.branches
    precision = getattr(denoiser, "dtype", sample.dtype)
    rows, times = torch.cat([sample] * branches).to(precision), timesteps.repeat(branches)
    prediction = denoiser(rows, timestep=times, **conditioning, return_dict=False)[0]
    # Some denoisers predict a variance beside the noise.
    prediction = prediction[:, : sample.shape[1]].to(sample.dtype)
    if branches > 1:
        unconditional, conditional = prediction.chunk(2)
        prediction = unconditional + diffusion.guidance * (conditional - unconditional)
    return prediction


def _check_rows(diffusion: Diffusion, inputs: Inputs) -> None:
    """Raise where a tensor has another number of rows than the batch: broadcasting would hide it from one picture."""
    wanted = len(inputs) * diffusion.branches
    for value in tree_leaves(dict(inputs.conditioning)):
        if isinstance(value, torch.Tensor) and value.ndim and len(value) != wanted:
            raise DipgoError(
                f"the conditioning has {len(value)} rows, but {len(inputs)} pictures at guidance "
                f"{diffusion.guidance:g} take {wanted}" + ", the unconditional ones first" * (wanted > len(inputs))
            )


def picture_seeds(seed: int, indices: Sequence[int]) -> list[int]:
    """Return a seed for each picture that depends on (seed, prompt index) alone.

    So batch size, order and resuming cannot change a picture's noise.
    """
    return [int(np.random.SeedSequence([seed, i]).generate_state(1, dtype=np.uint64)[0]) for i in indices]


def initial_noise(seeds: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
    """Return standard normal noise [len(seeds), *shape], float32 on the CPU, one picture for each seed."""
    return torch.stack([torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def _after_initial_noise(seed: int, shape: Sequence[int]) -> torch.Generator:
    """Return a picture's generator where `initial_noise` left it, as diffusers' pipelines go on with theirs."""
    generator = torch.Generator().manual_seed(seed)
    torch.randn(*shape, generator=generator)
    return generator
