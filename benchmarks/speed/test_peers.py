"""Ours against other caches on the same schedule, in turn."""

from __future__ import annotations

import pytest
import torch

from benchmarks.speed.cases import zoo
from benchmarks.speed.peers import PEERS, Unfit

MODELS = ("emoji-sd", "emoji-dit", "emoji-pixart")


@pytest.mark.benchmark(group="peers: ours, in turn with each of them")
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", PEERS)
def test_same_schedule(timed, name, model):
    """`against_seconds` are the peer's, put on once and for all; that it computes the same is seen by its latents."""
    case, peer = zoo(model), PEERS[name]
    try:
        plan = peer.plan(case)
    except Unfit as reason:
        pytest.skip(f"{name}: {reason}")
    denoiser = peer.denoiser(case)
    torch.testing.assert_close(case.latents(plan), case.latents(denoiser=denoiser), rtol=1e-3, atol=1e-3)
    timed(lambda: case.latents(plan), against=lambda: case.latents(denoiser=denoiser))
