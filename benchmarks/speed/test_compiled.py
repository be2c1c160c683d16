"""torch.compile: a pruned run against the dense one, both of compiled blocks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler

from benchmarks.machine.shards import shards
from benchmarks.models.compiled import compiled
from benchmarks.speed.cases import Case, zoo
from benchmarks.speed.test_executor import FEW, note_efficiency


@pytest.fixture(scope="module")
def emoji_dit() -> Iterator[Case]:
    """Its 28 blocks are of one kind, which compiles once: on two cores a U-Net's nine take minutes."""
    case = zoo("emoji-dit")
    if shards().device.type == "cpu":
        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            pytest.skip("torch.compile needs a C++ compiler on a CPU, and there is none")
    case.model.costs  # noqa: B018  (they are counted on the denoiser as it was)
    with compiled(case.denoiser):
        yield case


@pytest.mark.benchmark(group="compiled: emoji-dit, denoiser")
def test_compiled_dense(timed, emoji_dit):
    timed(emoji_dit.calls, rounds=FEW)


@pytest.mark.benchmark(group="compiled: emoji-dit, denoiser")
def test_compiled_pruned(timed, benchmark, emoji_dit):
    plan = emoji_dit.pruned(0.8)
    timed(lambda: emoji_dit.calls(plan), against=emoji_dit.calls, rounds=FEW)
    note_efficiency(benchmark, plan)
