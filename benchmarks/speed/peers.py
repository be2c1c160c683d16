"""Other caches, timed beside ours on the same schedule.

Every `INTERVAL`-th call computes everything. In the calls between, a cache reuses what it is made to reuse.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from DeepCache import DeepCacheSDHelper
from diffusers import hooks
from diffusers.hooks import HookRegistry
from diffusers.models.cache_utils import CacheMixin
from torch import nn

from baselines import Plan
from benchmarks.speed.cases import Case
from dipgo.errors import DipgoError

INTERVAL = 5
ALWAYS, ANY_TIMESTEP = 1e9, (-1, 1001)
"""A threshold that every call stays below, and a range that holds every timestep."""
ATTENTIONS = ("attn1", "attn2")

Denoiser = Callable[..., Any]


class Unfit(DipgoError):
    """Raised where a cache cannot be used on a model."""


@dataclass(frozen=True)
class Peer:
    """Another cache."""

    plan: Callable[[Case], Plan]
    """Returns the plan that reuses the same in `gated`. Raises `Unfit` where the cache cannot be used."""
    put_on: Callable[[Case, nn.Module], Denoiser]
    """Puts the cache on a denoiser, and returns what to call instead of it."""

    def denoiser(self, case: Case) -> Denoiser:
        """Return a copy of the model's denoiser with the cache on it."""
        return self.put_on(case, deepcopy(case.denoiser))


def _unfit(why: str, case: Case, denoiser: Any = None) -> Any:
    raise Unfit(why)


def _blocks(case: Case) -> tuple[str, ...]:
    if case.model.family.layers is not None:
        raise Unfit("a U-Net has no row of transformer blocks on one residual stream")
    return case.model.family.blocks(case.denoiser)


def _reusing(case: Case, sites: list[str]) -> Plan:
    between = np.arange(case.sampler.calls) % INTERVAL != 0
    return case.gates(sites, np.repeat(between[:, None], len(sites), axis=1))


def _all_but_first(case: Case) -> Plan:
    return _reusing(case, [f"{block}:delta" for block in _blocks(case)[1:]])


def _attentions(case: Case) -> Plan:
    blocks = {block: case.denoiser.get_submodule(block) for block in _blocks(case)}
    return _reusing(
        case, [f"{name}.{part}" for name, block in blocks.items() for part in ATTENTIONS if getattr(block, part, None)]
    )


def _deepcache(case: Case) -> Plan:
    if case.model.family.layers is None:
        raise Unfit("the DeepCache package wraps the up and down blocks of a U-Net")
    return case.plan("deepcache", interval=INTERVAL, branch=0)


def _cache_dit(case: Case) -> Plan:
    try:
        importlib.import_module("cache_dit")
    except ImportError as error:
        raise Unfit(f"cache-dit cannot be imported ({error}): pip install cache-dit") from error
    return _all_but_first(case)


def _put_on_deepcache(case: Case, denoiser: nn.Module) -> Denoiser:
    class Pipe:
        unet, scheduler = denoiser, case.sampler.scheduler()

    helper = DeepCacheSDHelper(pipe=Pipe())
    helper.set_params(cache_interval=INTERVAL, cache_branch_id=0)
    helper.enable()
    # The package expects one timestep, passed by position.
    return lambda sample, timestep, **kwargs: denoiser(sample, timestep[0], **kwargs)


def _put_on_hooks(apply: Callable[..., None], config: Any, case: Case, denoiser: nn.Module) -> Denoiser:
    """Put a cache of diffusers on a denoiser. Its state is cleared before every full call."""
    apply(denoiser, config)
    registry, call = HookRegistry.check_if_exists_or_initialize(denoiser), 0

    def stand_in(*args: Any, **kwargs: Any) -> Any:
        nonlocal call
        if call % INTERVAL == 0:
            registry.reset_stateful_hooks()
        call += 1
        with CacheMixin.cache_context(denoiser, "both branches"):
            return denoiser(*args, **kwargs)

    return stand_in


def _put_on_cache_dit(case: Case, denoiser: nn.Module) -> Denoiser:
    package, calls = importlib.import_module("cache_dit"), case.sampler.calls
    config = package.DBCacheConfig(
        Fn_compute_blocks=1,
        Bn_compute_blocks=0,
        max_warmup_steps=0,
        residual_diff_threshold=ALWAYS,
        enable_separate_cfg=False,
        num_inference_steps=calls,
        steps_computation_mask=[int(call % INTERVAL == 0) for call in range(calls)],
        steps_computation_policy="static",
    )
    package.enable_cache(denoiser, cache_config=config)
    return denoiser


FIRST_BLOCK = hooks.FirstBlockCacheConfig(threshold=ALWAYS)
BROADCAST = hooks.PyramidAttentionBroadcastConfig(
    spatial_attention_block_skip_range=INTERVAL,
    cross_attention_block_skip_range=INTERVAL,
    spatial_attention_timestep_skip_range=ANY_TIMESTEP,
    cross_attention_timestep_skip_range=ANY_TIMESTEP,
    current_timestep_callback=lambda: 0,
)
TAYLOR = hooks.TaylorSeerCacheConfig(
    cache_interval=INTERVAL,
    disable_cache_before_step=-1,  # so that the first call of every interval is the full one
    max_order=0,
    taylor_factors_dtype=torch.float32,
    cache_identifiers=[rf"transformer_blocks\.\d+\.{part}" for part in ATTENTIONS],
)
NO_SCHEDULE = {
    "faster-cache": "it makes the unconditional branch out of the conditional one: no schedule of blocks is the same",
    "mag-cache": "it decides by magnitudes that are calibrated for one model, and follows no schedule",
    "sea-cache": "it decides by a spectrum of video latents, and follows no schedule",
}

PEERS: dict[str, Peer] = {
    "deepcache": Peer(_deepcache, _put_on_deepcache),
    "first-block-cache": Peer(_all_but_first, partial(_put_on_hooks, hooks.apply_first_block_cache, FIRST_BLOCK)),
    "attention-broadcast": Peer(
        _attentions, partial(_put_on_hooks, hooks.apply_pyramid_attention_broadcast, BROADCAST)
    ),
    "taylorseer-order-0": Peer(_attentions, partial(_put_on_hooks, hooks.apply_taylorseer_cache, TAYLOR)),
    "cache-dit": Peer(_cache_dit, _put_on_cache_dit),
    **{name: Peer(partial(_unfit, why), partial(_unfit, why)) for name, why in NO_SCHEDULE.items()},
}
