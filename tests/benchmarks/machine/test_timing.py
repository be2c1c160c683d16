"""Device timing, the refusal of another device's benchmarks, and that a gated run does not wait for its GPU."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.machine import timing
from benchmarks.machine.shards import ALONE
from benchmarks.machine.timing import Stopwatch, clock_mhz, compared, first_call, now, seconds_of
from benchmarks.speed.conftest import (
    device_time,
    pytest_benchmark_compare_machine_info,
    pytest_benchmark_update_machine_info,
    pytest_collection_modifyitems,
)
from dipgo import Diffusion, Inputs, Schedule, gated, rollout
from tests.conftest import GUIDANCE

CPU = torch.device("cpu")
META = torch.device("meta")


def test_two_moments_differ_by_seconds():
    start = now(CPU)
    time.sleep(0.02)
    assert 0.02 <= now(CPU) - start < 1
    assert 0.02 <= seconds_of(lambda: time.sleep(0.02), CPU) < 1


def test_a_stopwatch_sums_the_calls_of_a_module_and_comes_off():
    module, watch = torch.nn.Identity(), Stopwatch(CPU)
    module.register_forward_pre_hook(lambda *call: time.sleep(0.01))
    with watch.on(module):
        module(1)
        module(2)
    module(3)
    assert len(watch.spans) == 2
    assert watch.seconds() == pytest.approx(sum(end - start for start, end in watch.spans))


def test_a_speedup_pairs_the_calls_of_a_round():
    """A machine that slows down in the middle does it to both."""
    found = compared(against=[2.0, 8.0, 4.0], own=[1.0, 4.0, 1.0])
    assert found["speedup"] == 2 and found["against_seconds"] == 4
    assert (found["speedup_low"], found["speedup_high"]) == (2, 3)


def test_the_first_call_stands_apart_with_the_memory_that_came_with_it():
    device = ALONE.device
    found = first_call(lambda: torch.ones(32, 2**20, device=device).sum(), device)  # 128 MiB
    assert found["first_call_seconds"] > 0
    assert found["peak_memory_bytes"] >= found["added_memory_bytes"] >= 0
    held = []
    assert first_call(lambda: held.append(torch.ones(32, 2**20, device=device)), device)["added_memory_bytes"] >= 2**27


def test_a_clock_that_cannot_be_read_is_absent(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "CPU_CLOCKS", tmp_path / "cpuinfo")
    assert clock_mhz(CPU) is None
    timing.CPU_CLOCKS.write_text("processor\t: 0\ncpu MHz\t\t: 1200.5\nprocessor\t: 1\ncpu MHz\t\t: 2300.0\n")
    assert clock_mhz(CPU) == 2300
    timing.CPU_CLOCKS.write_text("processor\t: 0\n")
    assert clock_mhz(CPU) is None


def test_benchmarks_of_another_device_are_refused():
    here: dict[str, str] = {}
    pytest_benchmark_update_machine_info(here)
    pytest_benchmark_compare_machine_info(here, {"machine_info": dict(here)})
    for stored in ({"device": "another"}, {}):
        with pytest.raises(pytest.UsageError, match="--benchmark-autosave"):
            pytest_benchmark_compare_machine_info(here, {"machine_info": stored})


@pytest.mark.benchmark(group="speed")
def test_a_benchmark_keeps_its_group_and_is_timed_on_the_device(request, monkeypatch):
    monkeypatch.setattr(request.node, "fixturenames", ["timed"])
    pytest_collection_modifyitems([request.node])
    assert request.node.get_closest_marker("benchmark").kwargs == {"group": "speed", "timer": device_time}


class Waits(TorchDispatchMode):
    """Counts what has a GPU and its host wait for each other: values that are read and copies from one to the other.
    Tensors without values (device "meta") stand for the GPU's."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = self.copies = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        there = any(tensor.is_meta for tensor in tree_leaves(args) if isinstance(tensor, torch.Tensor))
        if func is torch.ops.aten._local_scalar_dense.default and there:
            self.reads += 1
            return False if args[0].dtype == torch.bool else float("nan")  # no timestep equals another
        if func is torch.ops.aten._to_copy.default and kwargs.get("device") not in (None, args[0].device):
            if there:
                self.reads += 1
                return torch.arange(args[0].numel(), 0, -1)  # timesteps
            self.copies += 1
        return func(*args, **kwargs)


def waits(tiny, name: str, steps: int) -> Waits:
    denoiser = tiny.family.tiny().to(META)
    sampler = tiny.sampler(name, steps)
    schedule = Schedule(tiny.graph.sites, tiny.random_reuse(sampler.calls).numpy())
    conditioning = {key: value.to(META) for key, value in tiny.conditioning.items()}
    noise = tiny.noise.to(META)
    with Waits() as counted, torch.no_grad(), gated(denoiser, tiny.graph, schedule) as trace:
        rollout(Diffusion(denoiser, sampler, GUIDANCE), Inputs(noise, conditioning))
    assert 0 < np.count_nonzero(trace.outcomes) < trace.outcomes.size  # some computed, some not
    return counted


@pytest.mark.parametrize("name", ["ddim", "plms", "dpm"])
def test_a_gated_run_waits_no_more_often_for_more_calls(tiny, name):
    few, many = waits(tiny, name, 5), waits(tiny, name, 11)
    assert (few.reads, few.copies) == (many.reads, many.copies)
    assert few.copies == 1  # the timesteps
    assert few.reads <= 1  # the timesteps, at the first call


def test_a_wait_in_a_site_would_be_seen(tiny):
    denoiser = tiny.family.tiny().to(META)
    with Waits() as counted:
        denoiser.conv_in.weight.sum().item()
        torch.ones(1).to(META)
    assert (counted.reads, counted.copies) == (1, 1)
