"""DiP-GO: learn, for every block of a diffusion model at every denoising step, whether to compute or reuse."""

from dipgo.costs import CostModel, PaperMacs, count_costs
from dipgo.errors import DipgoError, PartialTrajectory, UnreachableRatio
from dipgo.families import FAMILIES, Family, branch_guidance, denoiser_of, family_of
from dipgo.gating import gated
from dipgo.graph import BlockGraph, Execution, Site, trace_graph
from dipgo.learning import LearnConfig, Learned, Pictures, learn_forecast
from dipgo.lockstep import gated_together, rollout_together
from dipgo.pruner import Pruner, straight_through
from dipgo.rules import Forecast, ruled
from dipgo.sampling import Sampler, initial_noise, picture_seeds, rollout
from dipgo.schedule import Schedule
from dipgo.select import select_schedule
from dipgo.trace import Outcome, Trace
from dipgo.train import Batch, TrainConfig, TrainStep, train_pruner

__all__ = [
    "Batch",
    "BlockGraph",
    "CostModel",
    "DipgoError",
    "Execution",
    "FAMILIES",
    "Family",
    "Forecast",
    "LearnConfig",
    "Learned",
    "Outcome",
    "PaperMacs",
    "PartialTrajectory",
    "Pictures",
    "Pruner",
    "Sampler",
    "Schedule",
    "Site",
    "Trace",
    "TrainConfig",
    "TrainStep",
    "UnreachableRatio",
    "ruled",
    "branch_guidance",
    "count_costs",
    "denoiser_of",
    "family_of",
    "gated",
    "gated_together",
    "initial_noise",
    "learn_forecast",
    "picture_seeds",
    "rollout",
    "rollout_together",
    "select_schedule",
    "straight_through",
    "trace_graph",
    "train_pruner",
]
