"""What holds for every kind of denoiser, none of which is known by name: its blocks are found by watching a call."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.flop_counter import FlopCounterMode

from dipgo import CostModel, DipgoError, Schedule, Site, costs_of, find_sites, gated, trace_graph
from dipgo.graph import named_inputs
from tests.helpers.denoisers import KINDS, Denoiser, made

TIMESTEPS = (900.0, 600.0, 300.0, 10.0)
TWO_STREAMS = ("hidden_states", "encoder_hidden_states")
STREAMS = {  # what such a block gives, where that is not the picture alone
    "sd3": TWO_STREAMS[::-1],
    "flux": TWO_STREAMS[::-1],
    "flux2": TWO_STREAMS[::-1],
    "chroma": TWO_STREAMS[::-1],
    "qwen-image": TWO_STREAMS[::-1],
    "auraflow": TWO_STREAMS[::-1],
    "hidream": TWO_STREAMS,
    "cogview4": TWO_STREAMS,
    "cogvideox": TWO_STREAMS,
    "mochi": TWO_STREAMS,
}


@dataclass
class Watched:
    """A tiny denoiser and what was found by watching one call of it."""

    kind: str
    denoiser: Denoiser
    unit: str

    @cached_property
    def costs(self) -> CostModel:
        module, inputs = self.denoiser.module, self.denoiser.inputs
        return costs_of(module, find_sites(module, inputs, self.unit), inputs)

    @property
    def sites(self) -> tuple[str, ...]:
        return self.costs.graph.sites

    @cached_property
    def schedule(self) -> Schedule:
        reuse = np.random.default_rng(len(self.sites)).random((len(TIMESTEPS), len(self.sites))) < 0.5
        reuse[0] = False
        reuse[1, 0], reuse[1, -1] = True, False  # something is reused, and the second call has an output of its own
        return Schedule(self.sites, reuse)

    def run(self, gates: Schedule | torch.Tensor | None = None) -> list[torch.Tensor]:
        """Draw with the stock denoiser, or gated."""
        if gates is None:
            return self._calls()
        with gated(self.denoiser.module, self.costs.graph, gates):
            return self._calls()

    @torch.no_grad()
    def _calls(self) -> list[torch.Tensor]:
        return [tensor for timestep in TIMESTEPS for tensor in self.denoiser.call(timestep)]

    def streams(self, module: torch.nn.Module, args: tuple, kwargs: dict, count: int) -> list[torch.Tensor | None]:
        """Return the input that each of a block's outputs continues, by the list above; none but for deltas."""
        if self.unit == "output":
            return [None] * count
        inputs = named_inputs(module, args, kwargs)
        names = STREAMS[self.kind] if count > 1 else [next(iter(inputs))]
        return [inputs[name] for name in names]

    @torch.no_grad()
    def replaced(self) -> list[torch.Tensor]:
        """Draw with everything computed; then the outputs of reused sites are replaced by what is stored."""
        stored: dict[int, list[torch.Tensor | None]] = {}
        outputs, handles, call = [], [], 0

        def replacing(index: int):
            def hook(module, args, kwargs, output):
                leaves, form = tree_flatten(output)
                streams = self.streams(module, args, kwargs, len(leaves))
                if not self.schedule.reuse[call, index]:
                    stored[index] = [combined(new, stream, -1) for new, stream in zip(leaves, streams, strict=True)]
                    return None
                both = zip(stored[index], streams, strict=True)
                return tree_unflatten([combined(old, stream, 1) for old, stream in both], form)

            return hook

        for index, site in enumerate(map(Site.parse, self.sites)):
            module = self.denoiser.module.get_submodule(site.module)
            handles.append(module.register_forward_hook(replacing(index), with_kwargs=True))
        for timestep in TIMESTEPS:
            outputs += self.denoiser.call(timestep)
            call += 1
        for handle in handles:
            handle.remove()
        return outputs


def combined(value: torch.Tensor | None, stream: torch.Tensor | None, sign: int) -> torch.Tensor | None:
    return value if value is None else value.clone() if stream is None else value + sign * stream


@pytest.fixture(scope="module", params=[*KINDS, "plain"])
def denoiser(request) -> tuple[str, Denoiser]:
    return request.param, made(request.param)


@pytest.fixture(scope="module")
def watched(denoiser) -> Watched:
    return Watched(*denoiser, "output")


def is_unet(kind: str) -> bool:
    return "unet" in kind or kind == "controlnet"


def equal(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return len(some) == len(others) and all(map(torch.equal, some, others))


def test_the_sites_hold_the_weights_and_all_are_alive(watched):
    module = watched.denoiser.module
    found = [sum(p.numel() for p in module.get_submodule(site).parameters()) for site in watched.sites]
    share = sum(found) / sum(p.numel() for p in module.parameters())
    assert share >= (0.85 if is_unet(watched.kind) else 0.9)
    assert not watched.costs.graph.execute(Schedule.dense(watched.sites, 3)).dead.any()


def test_everything_computed_equals_the_stock_denoiser(watched):
    assert equal(watched.run(Schedule.dense(watched.sites, len(TIMESTEPS))), watched.run())


def test_reuse_replaces_outputs_by_stored_ones(watched):
    drawn = watched.run(watched.schedule)
    assert equal(drawn, watched.replaced()) and not equal(drawn, watched.run())


def test_what_is_counted_is_what_runs(watched):
    full, execution = watched.costs.full, watched.costs.graph.execute(watched.schedule)
    assert full.rest >= 0 and (full.sites > 0).all()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        watched.run(watched.schedule)
    assert counter.get_total_flops() // 2 == full.per_call(execution).sum()


def test_deltas_are_on_top_of_the_stream_that_each_output_continues(denoiser):
    watched = Watched(*denoiser, "delta")
    if is_unet(watched.kind):
        with pytest.raises(DipgoError, match="is no delta: the block's output .* has the shape of none of its inputs"):
            assert watched.costs
        return
    assert equal(watched.run(watched.schedule), watched.replaced())
    assert equal(watched.run(Schedule.dense(watched.sites, len(TIMESTEPS))), watched.run())
    test_what_is_counted_is_what_runs(watched)
    for names in [[stream.name for stream in streams] for streams in watched.costs.graph.streams]:
        assert len(names) == 1 or tuple(names) == STREAMS[watched.kind]


@pytest.mark.parametrize("unit", ["output", "delta"])
@pytest.mark.parametrize("kind", ["sd3", "cogvideox"])
def test_values_of_several_streams_are_mixed_and_combined(kind, unit):
    watched = Watched(kind, made(kind), unit)
    hard = watched.run(watched.schedule)
    soft = watched.run(torch.from_numpy(watched.schedule.reuse.copy()).float())
    for one, other in zip(hard, soft, strict=True):
        torch.testing.assert_close(one, other)
    coefficients = np.zeros((*watched.schedule.reuse.shape, 2))
    coefficients[..., 0] = 1
    assert equal(watched.run(replace(watched.schedule, coefficients=coefficients)), hard)


@pytest.mark.parametrize("kind", ["flux", "cogview4"])
def test_streams_of_one_shape_are_told_apart_by_where_they_go(kind):
    denoiser = made(kind)
    longer = {**denoiser.inputs, "encoder_hidden_states": torch.randn(1, 16, 8)}  # as many tokens as the picture has
    if kind == "flux":
        longer["txt_ids"] = torch.zeros(16, 3)
    sites = find_sites(denoiser.module, longer, "delta")
    streams = trace_graph(denoiser.module, sites, longer).streams
    assert {tuple(stream.name for stream in found) for found in streams} == {STREAMS[kind]}
    with pytest.raises(DipgoError, match="is no delta here: .* nothing tells which belong together"):
        trace_graph(denoiser.module, sites[-1:], longer)  # a last block hands its outputs to no other
