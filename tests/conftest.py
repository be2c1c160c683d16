from __future__ import annotations

import weakref

import pytest
import torch

from dipgo import Diffusion, Inputs, Sampler, count_costs, initial_noise, picture_seeds, trace_graph
from dipgo.execute import values
from dipgo.families import SD15

torch.set_num_threads(1)  # tiny models: threads cost more than they bring, and stall on a busy machine

SD_SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
GUIDANCE = 4.0


class Tiny:
    """A random U-Net of SD-1.5's shape with everything a sampler run needs."""

    def __init__(self) -> None:
        self.family = SD15
        torch.manual_seed(0)
        self.denoiser = self.family.tiny()
        self.probe = self.family.probe(self.denoiser)
        self.graph = trace_graph(self.denoiser, self.family.blocks(self.denoiser), self.probe)
        self.seeds = picture_seeds(0, [0, 1])
        self.noise = initial_noise(self.seeds, (4, 8, 8))
        self.conditioning = {"encoder_hidden_states": torch.randn(4, 6, 8)}
        self.inputs = Inputs(self.noise, self.conditioning, self.seeds)

    def sampler(self, name: str = "ddim", steps: int = 6, **kwargs) -> Sampler:
        return Sampler(name, SD_SCHEDULER, steps, **kwargs)

    def diffusion(self, sampler: Sampler, guidance: float = GUIDANCE) -> Diffusion:
        return Diffusion(self.denoiser, sampler, guidance)

    def random_reuse(self, calls: int, seed: int = 0, share: float = 0.5) -> torch.Tensor:
        reuse = torch.rand(calls, len(self.graph.sites), generator=torch.Generator().manual_seed(seed)) < share
        reuse[0] = False
        return reuse


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    return Tiny()


@pytest.fixture(scope="session")
def tiny_costs(tiny):
    return count_costs(tiny.denoiser, tiny.graph, tiny.probe)


@pytest.fixture
def remembered(monkeypatch):
    """Counts the values of gated sites that are remembered now."""
    taken: list[weakref.ref] = []

    def taking(value: torch.Tensor) -> torch.Tensor:
        taken.append(weakref.ref(copy := values.snapshot(value)))
        return copy

    monkeypatch.setattr("dipgo.execute.gating.snapshot", taking)
    return lambda: sum(ref() is not None for ref in taken)


@pytest.fixture(scope="session")
def inceptions(tmp_path_factory):
    """Folders of both Inception networks with random weights, by protocol; EfficientNet-Lite0 brings its own."""
    from tests.helpers.inceptions import write_clean, write_paper  # its imports are of these tests alone

    folder = tmp_path_factory.mktemp("inceptions")
    return {"efflite0": None, "clean": write_clean(folder / "clean"), "paper": write_paper(folder / "paper")}
