"""Random and genetic search on toy fitness functions, and the repair to a ratio."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from baselines import PlanContext, method
from baselines.search import PATIENCE, SearchSpace
from dipgo import DipgoError, Schedule, UnreachableRatio
from dipgo.pruner.select import TOLERANCE
from tests.helpers.studio import TinyStudio, Toy

SEARCHES = ("random_search", "genetic_search")
RATIO = 0.6


@pytest.fixture
def search(tiny, tiny_costs):
    def go(name: str, fitness: Toy, calls: int = 10, ratio: float = RATIO, **settings):
        params = {"ratio": ratio, "search": settings}
        sampler, studio = tiny.sampler("ddim", calls), TinyStudio(fitness=fitness)
        return method(name).plan(PlanContext(tiny.denoiser, tiny_costs, sampler, params, studio))

    return go


def space_of(costs, calls: int = 10, ratio: float = RATIO) -> SearchSpace:
    return SearchSpace(costs, calls, ratio)


def distance_to(planted: Schedule) -> Callable[[Schedule], float]:
    return lambda schedule: float((schedule.reuse != planted.reuse).mean())


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.8, 0.87])
def test_a_repaired_schedule_meets_the_ratio(tiny_costs, ratio):
    space, rng = space_of(tiny_costs, 20, ratio), np.random.default_rng(0)
    for share in (0.0, 0.3, 0.7, 1.0):
        repaired = space.repair(rng.random(space.size) < share, rng)
        assert abs(tiny_costs.pruned_ratio(space.schedule(repaired)) - ratio) < TOLERANCE


def test_a_schedule_that_meets_the_ratio_is_left_alone(tiny_costs):
    space, rng = space_of(tiny_costs), np.random.default_rng(0)
    bits = space.random(rng)
    assert (space.repair(bits, rng) == bits).all()


def test_a_ratio_that_no_schedule_meets_is_refused_with_the_nearest(tiny_costs):
    with pytest.raises(UnreachableRatio, match=r"prunes 0.95 of the MACs within 0.0125; the nearest prunes 0.8"):
        space_of(tiny_costs, 6, 0.95).random(np.random.default_rng(0))
    for ratio in (0, 1, 1.5):
        with pytest.raises(DipgoError, match="strictly between 0 and 1"):
            space_of(tiny_costs, 6, ratio)


def test_bit_strings_that_compute_the_same_have_one_digest(tiny_costs):
    space = space_of(tiny_costs, 3)
    skipped = np.zeros((2, len(tiny_costs.graph.sites)), dtype=bool)
    skipped[1, -1] = True  # the last block is reused, so nothing else of that call matters
    other = skipped.copy()
    other[1, 0] = True
    assert space.schedule(skipped.ravel()).digest == space.schedule(other.ravel()).digest
    executed = [tiny_costs.graph.execute(s).computed for s in (space.schedule(skipped.ravel()),)]
    assert executed[0][:2].all() and not executed[0][2].any()


@pytest.mark.parametrize("name", SEARCHES)
def test_one_seed_is_one_search(search, tiny_costs, name):
    planted = space_of(tiny_costs).schedule(space_of(tiny_costs).random(np.random.default_rng(9)))
    toys = [Toy(distance_to(planted)) for _ in range(3)]
    state = random.getstate()
    plans = [
        search(name, toy, evaluations=60, population=10, seed=seed) for toy, seed in zip(toys, (0, 0, 1), strict=True)
    ]
    assert toys[0].order == toys[1].order != toys[2].order
    assert plans[0].schedule.digest == plans[1].schedule.digest
    assert random.getstate() == state  # nobody else's draws depend on a search


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_keeps_to_its_budget_and_returns_its_best(search, tiny_costs, name):
    toy = Toy(lambda schedule: float(schedule.reuse[5].sum()))
    plan = search(name, toy, evaluations=70, population=16)
    assert toy.evaluations == 70
    searched = replace(plan.schedule, timesteps=None)  # a plan says at which timesteps, a search does not
    assert toy.seen[searched.digest] == min(toy.seen.values())
    assert abs(tiny_costs.pruned_ratio(plan.schedule) - RATIO) < TOLERANCE


def test_a_planted_optimum_is_found_by_genetic_search_and_not_by_random_search(search, tiny_costs):
    space = space_of(tiny_costs, 8)
    planted = space.schedule(space.random(np.random.default_rng(9)))
    losses = {}
    for name in SEARCHES:
        toy = Toy(distance_to(planted))
        search(name, toy, calls=8, evaluations=3000, population=30)
        assert toy.evaluations <= 3000
        losses[name] = min(toy.seen.values())
    assert losses["genetic_search"] == 0 < 0.05 < losses["random_search"]


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_ends_where_nothing_new_is_left(search, tiny_costs, name):
    toy = Toy(lambda schedule: 0.0)
    search(name, toy, calls=2, ratio=0.5, evaluations=10_000, population=4)  # one schedule reuses the whole second call
    assert 1 <= toy.evaluations < 4 * PATIENCE


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"evaluations": 0}, "search.evaluations is 0; it must be at least 1"),
        ({"population": 0}, "search.population is 0"),
        ({"evalutions": 5}, "unknown parameter 'evalutions'; did you mean evaluations"),
    ],
)
def test_bad_settings_are_one_clear_line(search, name, settings, says):
    with pytest.raises(DipgoError, match=says):
        search(name, Toy(lambda schedule: 0.0), **settings)


def test_a_search_needs_a_call_to_prune(search):
    with pytest.raises(DipgoError, match="at least 2 calls"):
        search("random_search", Toy(lambda schedule: 0.0), calls=1)


@pytest.mark.parametrize("order", [0, 1])
def test_step_search_finds_planted_calls_within_its_budget(tiny, tiny_costs, order):
    planted = np.cumsum(~Schedule.skip_calls([""], 20, [0, 2, 3, 7, 16]).reuse)
    fitness = Toy(lambda schedule: float(np.abs(np.cumsum(~schedule.reuse) - planted).sum()))
    params = {"calls": 5, "order": order, "search": {"evaluations": 250}}
    sampler = tiny.sampler("ddim", 20)
    context = PlanContext(tiny.denoiser, tiny_costs, sampler, params, TinyStudio(fitness=fitness))
    plan = method("step_search").plan(context)
    assert np.cumsum(~plan.schedule.reuse).tolist() == planted.tolist()
    assert fitness.evaluations <= 250 and plan.schedule.depth == 1 + order
