"""DiP-GO: learn, for every block of a diffusion model at every denoising step, whether to compute or reuse."""

from dipgo.costs import CostModel, count_costs
from dipgo.errors import DipgoError, PartialTrajectory, UnreachableRatio
from dipgo.families import Family, family_of
from dipgo.gating import Outcome, Trace, gated
from dipgo.graph import BlockGraph, Execution, trace_graph
from dipgo.pruner import Pruner, straight_through
from dipgo.sampling import Sampler, initial_noise, rollout
from dipgo.schedule import Schedule
from dipgo.select import select_schedule
from dipgo.train import Batch, TrainConfig, TrainStep, train_pruner

__all__ = [
    "Batch",
    "BlockGraph",
    "CostModel",
    "DipgoError",
    "Execution",
    "Family",
    "Outcome",
    "PartialTrajectory",
    "Pruner",
    "Sampler",
    "Schedule",
    "Trace",
    "TrainConfig",
    "TrainStep",
    "UnreachableRatio",
    "count_costs",
    "family_of",
    "gated",
    "initial_noise",
    "rollout",
    "select_schedule",
    "straight_through",
    "trace_graph",
    "train_pruner",
]
