"""Trains the pruner (section 4.1) by a few gradient steps, each through a whole sampler run.

The paper holds what it reuses. The training may also forecast it, and learns the coefficients along with the gates.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field

import torch
from torch import nn

from dipgo.costs import CostModel
from dipgo.errors import DipgoError
from dipgo.execute.gating import gated
from dipgo.graph import BlockGraph
from dipgo.pruner.losses import consistency, sparsity
from dipgo.pruner.network import Pruner, straight_through
from dipgo.rules import Forecast
from dipgo.sampling import Diffusion, Inputs, rollout
from dipgo.schedule import Schedule
from dipgo.state import State, copied

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Batch:
    """What one term of the loss needs."""

    inputs: Inputs
    images: torch.Tensor
    """Images [n, 3, H, W] that the full run from these inputs decodes to (x0_full of Eq. 3)."""


@dataclass(frozen=True)
class TrainConfig:
    """Settings of section 4.1 and appendix A; the defaults are the paper's for SD-1.5."""

    steps: int = 1000
    """Optimiser steps."""
    lr: float = 0.1
    """The first step's learning rate; it decays by a cosine."""
    weight_decay: float = 1e-4
    accumulate: int = 1
    """Batches whose gradients one step adds up."""
    loss: str = "ssim"
    """f of Eq. 3, a name in `CONSISTENCIES`."""
    alpha: float = 1.0
    """The weight of the sparsity in Eq. 3."""
    tau: float = 0.2
    """The sparsity at and below which Eq. 3 is the consistency alone."""
    gamma: bool = True
    """Whether the sparsity weighs blocks by the MACs that pruning them frees."""
    encoder: str = "linear"
    """The pruner's query encoder; see `Pruner`."""
    width: int = 512
    """The width D of the pruner's queries."""
    keep: float = 0.6
    """The score at which every block starts; a block is reused below 0.5."""
    checkpoint: bool = True
    """Whether calls are recomputed in the backward pass, which takes time and saves memory."""
    seed: int = 0
    """Decides the pruner's first weights."""
    order: int = 0
    """Beyond the paper: a reused value is a forecast of this order; 0 holds."""
    coefficient_lr: float = 0.0
    """Beyond the paper: the learning rate of the forecast's coefficients; 0 leaves them as the order says."""


@dataclass(frozen=True)
class TrainStep:
    """Where the training stands after an optimiser step."""

    step: int
    """Optimiser steps made."""
    consistency: float
    """The first term of Eq. 3 before the step, the mean over its batches."""
    sparsity: float
    """The share of kept gates before the step, from 1 to 0."""
    pruner: Pruner
    """The network after the step. The next one changes it."""
    state: Callable[[], State] = field(repr=False, compare=False)
    """Returns what `train_pruner(..., resume=...)` takes to go on from here; call it before the next step."""


class Coefficients(nn.Module):
    """What reused sites give under trained gates: a forecast from the calls that the gates of this step compute, plus
    learned changes [calls, sites, K], one for every value that the forecast reads."""

    def __init__(self, graph: BlockGraph, rule: Forecast) -> None:
        super().__init__()
        self.graph, self.rule = graph, rule
        self.changes = nn.Parameter(torch.zeros(len(rule.times), len(graph.sites), rule.order + 1))

    def forward(self, gates: torch.Tensor) -> torch.Tensor:
        """Return coefficients [calls, sites, K] for reuse gates [calls, sites] of 0 and 1."""
        schedule = Schedule(self.graph.sites, gates.detach().bool().cpu().numpy())
        given = self.rule(self.graph.execute(schedule).computed)
        return torch.as_tensor(given).to(self.changes) + self.changes


def train_pruner(
    config: TrainConfig,
    diffusion: Diffusion,
    costs: CostModel,
    batches: Iterator[Batch],
    decode: Callable[[torch.Tensor], torch.Tensor],
    resume: State | None = None,
) -> Iterator[TrainStep]:
    """Minimise Eq. 3 over the pruner's parameters; the denoiser stays as it is. Yield after every step.

    config: the settings.
    diffusion: the denoiser, its sampler and the guidance scale.
    costs: MACs and graph of the sites that are gated.
    batches: gives `config.accumulate` batches a step.
    decode: turns final latents into images in [0, 1], differentiably.
    resume: the `state()` of an earlier step with the same settings. Its step is yielded again, and those after it are
        the same, bit for bit, as without the stop; `batches` must begin with the batches after that step.

    Where no gate has closed in the end, a warning says what to change. Raises `DipgoError` for bad settings.
    """
    if config.steps < 1 or config.accumulate < 1:
        raise DipgoError(f"training needs at least 1 step of 1 batch, got {config.steps} of {config.accumulate}")
    distance, denoiser, sampler = consistency(config.loss), diffusion.denoiser, diffusion.sampler
    device = next(denoiser.parameters()).device
    torch.manual_seed(config.seed)
    pruner = Pruner(
        sampler.calls, len(costs.graph.sites), width=config.width, encoder=config.encoder, keep=config.keep
    ).to(device)
    shares = costs.freed_shares() if config.gamma else [1.0] * len(costs.graph.sites)
    gamma = torch.as_tensor(shares, dtype=torch.float32, device=device)
    optimizer = torch.optim.SGD(pruner.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    trained = nn.ModuleDict({"pruner": pruner})
    coefficients = None
    if config.order or config.coefficient_lr:
        coefficients = Coefficients(costs.graph, Forecast(sampler.noise_ratios, config.order)).to(device)
        optimizer.add_param_group({"params": coefficients.parameters(), "lr": config.coefficient_lr, "weight_decay": 0})
        trained["coefficients"] = coefficients
    # Half precision rounds small gradients to zero; in full precision this does nothing.
    scaler = torch.amp.GradScaler(device.type, enabled=next(denoiser.parameters()).dtype == torch.float16)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    parts = {"optimizer": optimizer, "decay": decay, "scaler": scaler}

    def after(step: int, error: float, kept: float) -> TrainStep:
        def state() -> State:
            data = {name: part.state_dict() for name, part in parts.items()}
            terms = {"step": step, "consistency": error, "sparsity": kept}
            return State(copied(trained.state_dict()), {"config": asdict(config), **terms, **data})

        return TrainStep(step, error, kept, pruner, state)

    first = 1
    if resume is not None:
        resume.check(asdict(config))
        trained.load_state_dict(dict(resume.tensors))
        for name, part in parts.items():
            part.load_state_dict(resume.data[name])
        first = resume.data["step"] + 1
        yield after(*(resume.data[name] for name in ("step", "consistency", "sparsity")))
    frozen = [p for p in denoiser.parameters() if p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        for step in range(first, config.steps + 1):
            total = 0.0
            for _ in range(config.accumulate):
                batch = next(batches)
                gates = straight_through(pruner.scores())
                given = coefficients and coefficients(gates)
                with gated(denoiser, costs.graph, gates, coefficients=given, checkpoint=config.checkpoint):
                    latents = rollout(diffusion, batch.inputs)
                    error, kept = distance(decode(latents), batch.images), sparsity(gates, gamma)
                    loss = error + config.alpha * kept if kept.item() > config.tau else error
                    scaler.scale(loss / config.accumulate).backward()
                total += error.item() / config.accumulate
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            decay.step()
            if step == config.steps:
                _warn_of_idleness(config, pruner)
            yield after(step, total, kept.item())
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


@torch.no_grad()
def _warn_of_idleness(config: TrainConfig, pruner: Pruner) -> None:
    """Say what to change where a finished training has closed no gate."""
    lowest = pruner.scores()[1:].min().item() if pruner.calls > 1 else 0.0
    if lowest >= 0.5:
        log.warning(
            "the pruner has learned nothing: after %d steps at lr %g no gate has closed (sparsity 1.0, the lowest "
            "score is %.3f and a gate closes below 0.5); raise lr or steps, or lower keep (%g) towards 0.5",
            *(config.steps, config.lr, lowest, config.keep),
        )
