"""Estimates the memory of a run before it runs, by running its code on tensors that have shapes but no values."""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from baselines import Plan
from benchmarks.models.generate import sample
from benchmarks.models.model import Model
from benchmarks.supply.random_weights import CLASSES, without_values
from dipgo import Batch, Diffusion, Inputs, Schedule, TrainConfig, initial_noise, train_pruner

GUIDANCE = 7.5
"""Any scale that asks for the second guidance branch where there is one."""
FEW = (2, 3)
"""The numbers of calls that are run. Every further call keeps as much as the third does."""
aten = torch.ops.aten


@dataclass(frozen=True)
class Memory:
    """Bytes by what holds them. The peaks of `text`, `call` and `decoder` come one after the other."""

    weights: int
    """The weights of the whole pipeline."""
    pruner: int
    """The parameters of the pruner."""
    kept: int
    """What is kept until the backward pass: all activations or, with checkpoints, the sample and the values of the
    sites of every call."""
    text: int
    """The peak of encoding the captions."""
    call: int
    """The peak of one call, with its gradients."""
    decoder: int
    """The peak of the decoder, with its gradients."""

    @property
    def peak(self) -> int:
        """The most bytes in tensors at any time. What libraries take and fragments come on top."""
        return self.weights + max(self.text, self.pruner + self.kept + max(self.call, self.decoder))


def training_step_bytes(
    name: str,
    calls: int,
    batch: int = 1,
    dtype: torch.dtype = torch.float16,
    checkpoint: bool = True,
    slicing: bool = True,
    **changes: Mapping[str, Any],
) -> Memory:
    """Return the memory of one training step of the pruner of a paper's model.

    calls: the denoiser calls of a run.
    batch: the pictures of a step.
    checkpoint: whether activations are computed again in the backward pass.
    slicing: whether pictures are decoded one at a time. It saves nothing here, since the backward pass needs the
        activations of all.
    changes: changes to the configurations, as for `random_weights.pipeline`.

    On a CPU the peak is within 4 % of the resident memory of real steps of 260 MB and more (see
    tests/benchmarks/commands/test_memory.py). It has not been compared with a GPU yet.
    """
    model = _shapes(name, dtype, slicing, changes)
    less, more = (_training_step(model, few, batch, checkpoint) for few in FEW)
    grown = {key: more[key] + (calls - FEW[1]) * (more[key] - less[key]) for key in ("pruner", "kept")}
    return Memory(**{**more, **grown})


def generation_bytes(
    name: str,
    batch: int,
    dtype: torch.dtype = torch.float16,
    slicing: bool = True,
    **changes: Mapping[str, Any],
) -> Memory:
    """Return the memory of making `batch` pictures together with a model of the paper that follows a schedule.

    The other arguments are those of `training_step_bytes`.
    """
    model = _shapes(name, dtype, slicing, changes)
    sampler = model.sampler("ddim", FEW[0])
    plan = Plan(sampler, Schedule.dense(model.costs.graph.sites, sampler.calls), model.costs)
    with _watched(model) as watched:
        sample(watched, plan, [CLASSES[0]] * batch, range(batch), GUIDANCE)
        watched.ledger.mark("decoder")
    return Memory(**_breakdown(watched.ledger.marks, pruner=0))


def _training_step(model: Model, calls: int, batch: int, checkpoint: bool) -> dict[str, int]:
    config, sampler = TrainConfig(steps=1, checkpoint=checkpoint), model.sampler("ddim", calls)
    costs, scale = model.costs, model.branch_guidance(GUIDANCE)
    pixels = model.latent_shape[1] * 2 ** (len(model.pipeline.vae.config.block_out_channels) - 1)
    with _watched(model) as watched:
        conditioning = watched.condition([CLASSES[0]] * batch, GUIDANCE)
        noise = initial_noise(range(batch), model.latent_shape).to(model.device)
        images = torch.zeros(batch, 3, pixels, pixels, device=model.device)
        batches = iter([Batch(Inputs(noise, conditioning, range(batch)), images)])
        (step,) = train_pruner(config, Diffusion(model.denoiser, sampler, scale), costs, batches, watched.decode)
        watched.ledger.mark("backward")
    return _breakdown(watched.ledger.marks, pruner=sum(values.nbytes for values in step.pruner.parameters()))


def _breakdown(marks: Mapping[str, _Mark], pruner: int) -> dict[str, int]:
    weights, rolled_out = marks["weights"].live, marks["calls"].live
    return {
        "weights": weights,
        "pruner": pruner,
        "kept": rolled_out - weights - pruner,
        "text": marks["text"].peak - weights,
        "call": max(marks[key].peak for key in ("calls", "backward") if key in marks) - rolled_out,
        "decoder": marks["decoder"].peak - rolled_out,
    }


@dataclass(frozen=True)
class _Mark:
    """Live bytes at a point of a run, and the most that were live since the point before."""

    live: int
    peak: int


class _Ledger(TorchDispatchMode):
    """Counts the live bytes of all tensors without values that are made inside.

    Code that asks such a tensor for its value gets NaN, which equals nothing, or False.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.storages: dict[int, weakref.ref] = {}
        self.sharers: dict[int, list[int]] = {}
        self.marks: dict[str, _Mark] = {}

    def mark(self, name: str) -> None:
        self.marks[name] = _Mark(self.live, self.peak)
        self.peak = self.live

    def hold(self, tensor: torch.Tensor, of: torch.Tensor | None = None) -> None:
        """Count a tensor's memory until the last tensor that shares it is gone.

        of: the tensor of which this one is a copy on write, and whose memory it shares.
        """
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.storages:
            return
        sharers = self.sharers.get(of.untyped_storage()._cdata) if of is not None else None
        if sharers is None:
            sharers = [0]
            self.live += size
            self.peak = max(self.peak, self.live)
        sharers[0] += 1
        self.sharers[key] = sharers
        self.storages[key] = weakref.ref(storage, lambda _: self._release(key, size))

    def _release(self, key: int, size: int) -> None:
        del self.storages[key]
        sharers = self.sharers.pop(key)
        sharers[0] -= 1
        self.live -= 0 if sharers[0] else size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default and args[0].is_meta:
            return False if args[0].dtype == torch.bool else math.nan
        if func is aten._to_copy.default and args[0].is_meta and kwargs.get("device") == torch.device("cpu"):
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        out = func(*args, **kwargs)
        if func is aten._lazy_clone.default:  # it shares its memory until somebody writes into it
            self.hold(out, of=args[0])
            return out
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.is_meta:
                self.hold(tensor)
        return out


def _fused_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """Attention as GPUs compute it, without a matrix of scores, which torch would make for tensors without values."""
    fused = aten._scaled_dot_product_flash_attention_for_cpu
    return fused(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]


@dataclass(frozen=True, eq=False)
class _Watched(Model):
    """A model that marks in its ledger when captions are encoded, calls are done and pictures are decoded."""

    ledger: _Ledger

    def condition(self, captions: Sequence[str], guidance: float) -> Mapping[str, Any]:
        conditioning = super().condition(captions, guidance)
        self.ledger.mark("text")
        return conditioning

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        self.ledger.mark("calls")
        if latents.requires_grad:  # their gradient is there when the decoder's backward pass is through
            latents.register_hook(lambda _: self.ledger.mark("decoder"))
        return super().decode(latents)


def _shapes(name: str, dtype: torch.dtype, slicing: bool, changes: Mapping[str, Any]) -> Model:
    pipeline = without_values(name, dtype, **changes).to("meta")
    if slicing:
        pipeline.vae.enable_slicing()
    return Model(name, pipeline)


@contextmanager
def _watched(model: Model) -> Iterator[_Watched]:
    """Give the model with a ledger that holds its weights and counts what is made inside."""
    ledger = _Ledger()
    for part in model.pipeline.components.values():
        if isinstance(part, nn.Module):
            for values in (*part.parameters(), *part.buffers()):
                ledger.hold(values)
    ledger.mark("weights")
    fused = patch.object(nn.functional, "scaled_dot_product_attention", _fused_attention)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), ledger, fused:
        warnings.simplefilter("ignore")  # a step of NaN is skipped in float16, and its skipping warned of
        yield _Watched(model.name, model.pipeline, ledger)
