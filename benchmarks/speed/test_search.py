"""Searches: schedules evaluated a second."""

from __future__ import annotations

import pytest

from baselines.search import FitnessConfig
from benchmarks.prepare.search import Calibration
from benchmarks.speed.cases import setting, zoo

SCHEDULES, PICTURES, STEPS = 8, 2, 20


@pytest.mark.benchmark(group="search: one batch of schedules")
def test_fitness_evaluations(timed, benchmark):
    case = zoo("emoji-sd", steps=STEPS)
    calibration = Calibration(setting("emoji-sd", steps=STEPS), FitnessConfig(images=PICTURES))
    schedules = [case.pruned(0.8, seed).schedule for seed in range(SCHEDULES)]
    timed(lambda: calibration.losses(schedules), rounds=3, schedules=SCHEDULES, pictures=PICTURES)
    if benchmark.stats:
        benchmark.extra_info |= {"evaluations_per_second": SCHEDULES / benchmark.stats.stats.median}
