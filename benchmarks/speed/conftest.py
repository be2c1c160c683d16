"""The set-up of the speed benchmarks, which `pytest benchmarks/ --benchmark-only` runs on this process's device.

`--benchmark-autosave` stores a run in `.benchmarks/`, and `--benchmark-compare` compares the next one with it. A stored
run of another device is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pytest

from benchmarks.machine.provenance import device_name
from benchmarks.machine.shards import shards
from benchmarks.machine.timing import ROUNDS, clock_mhz, compared, first_call, now, seconds_of

PACKAGES = ("torch", "diffusers", "numpy")


def device_time() -> Any:
    """Return the moment in seconds, once the device has finished its work."""
    return now(shards().device)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "timed" in getattr(item, "fixturenames", ()):
            marker = item.get_closest_marker("benchmark")  # the only one that counts
            settings = {**(marker.kwargs if marker else {}), "timer": device_time}
            item.add_marker(pytest.mark.benchmark(**settings), append=False)


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    machine_info["device"] = device_name()


def pytest_benchmark_compare_machine_info(machine_info: dict[str, Any], compared_benchmark: dict[str, Any]) -> None:
    stored, here = compared_benchmark["machine_info"].get("device"), machine_info["device"]
    if stored != here:
        raise pytest.UsageError(
            f"the stored benchmarks are of {stored!r} and this is {here!r}: seconds of two devices say nothing of the "
            "code; store a run here with --benchmark-autosave and compare with that"
        )


@pytest.fixture
def timed(benchmark: Any) -> Callable[..., None]:
    """Give the function `timed(call, against=None, rounds=ROUNDS, **info)`, which times a call.

    call: what is timed. Its first call, which warms up, is noted apart from the rounds.
    against: another call. It runs before `call` in every round, and the pairs give the speedup over it.
    rounds: how many rounds are timed.
    info: what else goes into the `extra_info` of the benchmark.
    """

    def run(
        call: Callable[[], Any], against: Callable[[], Any] | None = None, rounds: int = ROUNDS, **info: Any
    ) -> None:
        device, others = shards().device, []

        def turn() -> None:
            others.append(seconds_of(against, device))

        notes = {"device": device_name(), **{name: version(name) for name in PACKAGES}, **info}
        notes |= first_call(call, device)
        if against:
            against()
        benchmark.pedantic(call, setup=turn if against else None, rounds=rounds)
        if (clock := clock_mhz(device)) is not None:
            notes["clock_mhz"] = clock
        if against and benchmark.stats:
            notes |= compared(others, benchmark.stats.stats.data)
        benchmark.extra_info.update(notes)

    return run
