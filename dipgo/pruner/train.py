"""Training the pruner (4.1): few-step gradient optimisation through whole sampler runs, as a generator.

The paper's reused values are held. They may be forecasts as well, whose coefficients are trained along with the gates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from dipgo.costs import CostModel
from dipgo.errors import DipgoError
from dipgo.execute.gating import gated
from dipgo.forecast.rules import Forecast
from dipgo.graph import BlockGraph
from dipgo.pruner.losses import consistency, sparsity
from dipgo.pruner.network import Pruner, straight_through
from dipgo.sampling import Diffusion, Inputs, rollout
from dipgo.schedule import Schedule


@dataclass(frozen=True, eq=False)
class Batch:
    """What one term of the loss needs."""

    inputs: Inputs
    images: torch.Tensor
    """Images [n, 3, H, W] that the full run from these inputs decodes to (x0_full of Eq. 3)."""


@dataclass(frozen=True)
class TrainConfig:
    """Settings of section 4.1 and appendix A; the defaults are the paper's for SD-1.5.

    `steps` optimiser steps of `accumulate` batches each; `lr` decays by a cosine; `alpha` and `tau` of
    Eq. 3; `gamma` weighs the sparsity by the MACs that each block frees; `checkpoint` trades time for memory.
    Beyond the paper: a reused value is a forecast of `order` (0 holds), whose coefficients learn at `coefficient_lr`
    (0: they stay what the order says).
    """

    steps: int = 1000
    lr: float = 0.1
    weight_decay: float = 1e-4
    accumulate: int = 1
    loss: str = "ssim"
    alpha: float = 1.0
    tau: float = 0.2
    gamma: bool = True
    encoder: str = "linear"
    width: int = 512
    keep: float = 0.6
    checkpoint: bool = True
    seed: int = 0
    order: int = 0
    coefficient_lr: float = 0.0


@dataclass(frozen=True)
class TrainStep:
    """Where training stands after `step` optimiser steps: Eq. 3's terms before the update."""

    step: int
    consistency: float
    sparsity: float
    pruner: Pruner


class Coefficients(nn.Module):
    """What reused sites give under trained gates: a forecast from the calls that the gates of this step compute, plus
    learned changes [calls, sites, K], one for every value that the forecast reads."""

    def __init__(self, graph: BlockGraph, rule: Forecast) -> None:
        super().__init__()
        self.graph, self.rule = graph, rule
        self.changes = nn.Parameter(torch.zeros(len(rule.times), len(graph.sites), rule.order + 1))

    def forward(self, gates: torch.Tensor) -> torch.Tensor:
        """Coefficients [calls, sites, K] for reuse gates [calls, sites] of 0 and 1."""
        schedule = Schedule(self.graph.sites, gates.detach().bool().cpu().numpy())
        given = self.rule(self.graph.execute(schedule).computed)
        return torch.as_tensor(given).to(self.changes) + self.changes


def train_pruner(
    config: TrainConfig,
    diffusion: Diffusion,
    costs: CostModel,
    batches: Iterator[Batch],
    decode: Callable[[torch.Tensor], torch.Tensor],
) -> Iterator[TrainStep]:
    """Minimise Eq. 3 over the pruner's parameters; the denoiser stays as it is. Yields after every update.

    `decode` turns final latents into images in [0, 1], differentiably. The caller owns logging and stopping.
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
    coefficients = None
    if config.order or config.coefficient_lr:
        coefficients = Coefficients(costs.graph, Forecast(sampler.noise_ratios, config.order)).to(device)
        optimizer.add_param_group({"params": coefficients.parameters(), "lr": config.coefficient_lr, "weight_decay": 0})
    # Half precision rounds small gradients to zero; in full precision this does nothing.
    scaler = torch.amp.GradScaler(device.type, enabled=next(denoiser.parameters()).dtype == torch.float16)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    frozen = [p for p in denoiser.parameters() if p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        for step in range(1, config.steps + 1):
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
            yield TrainStep(step, total, kept.item(), pruner)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
