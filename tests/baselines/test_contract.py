"""What every method of the registry keeps to, on every family that it supports."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import product
from typing import Any

import pytest
import torch

from baselines import METHODS, Plan, PlanContext, method
from baselines.random_scores import TOLERANCE
from benchmarks import ROOT
from dipgo import FAMILIES, DipgoError, Sampler, Schedule
from dipgo.families import DIT, SD15
from tests.conftest import SD_SCHEDULER
from tests.helpers.contract import Instance, instance
from tests.helpers.studio import TinyStudio

CALLS = 6
WRONG = ("", "0.5", None, -1, True, float("nan"), [], {"no_such_setting": 1})


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def tiny_family(request) -> tuple[Any, Instance]:
    return request.param, instance(request.param)


def context(family, made: Instance, params: dict[str, Any]) -> PlanContext:
    costs = family.costs(made.denoiser, family.sites(made.denoiser))
    sampler = Sampler("ddim", SD_SCHEDULER, CALLS)
    plain = PlanContext(made.denoiser, costs, sampler)

    def conditioning(rows: int) -> dict[str, Any]:
        def cut(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: cut(item) for name, item in value.items()}
            return value if value is None else value[:1].expand(rows, *value.shape[1:])

        return {name: cut(value) for name, value in made.conditioning.items()}

    studio = TinyStudio(plans={"another": plain.skipping([0, 2, 3])}, conditioning=conditioning)
    return PlanContext(made.denoiser, costs, sampler, params, studio)


def planned(name: str, family, made: Instance) -> list[tuple[dict[str, Any], Plan]]:
    """The examples of a method that suit a family, with their plans. What does not suit is refused in one line."""
    plans = []
    for params in method(name).module.EXAMPLES:
        try:
            plans.append((params, method(name).plan(context(family, made, params))))
        except DipgoError as error:
            assert len(str(error).splitlines()) == 1
    return plans


@pytest.mark.parametrize("name", METHODS)
def test_plans_are_valid_deterministic_within_the_asked_macs_and_run(tiny_family, name):
    family, made = tiny_family
    for params, plan in planned(name, family, made):
        again = method(name).plan(context(family, made, params))
        assert plan.schedule.digest == again.schedule.digest and plan.sampler == again.sampler
        plan.costs.graph.check(plan.schedule)
        assert plan.schedule.timesteps.tolist() == plan.sampler.timesteps.tolist()
        read = Schedule.from_dict(json.loads(json.dumps(plan.schedule.to_dict())))
        assert read.digest == plan.schedule.digest and (read.reuse == plan.schedule.reuse).all()
        if "ratio" in params:
            assert plan.costs.pruned_ratio(plan.schedule) > params["ratio"] - TOLERANCE
        if "calls" in params:
            assert plan.costs.graph.execute(plan.schedule).computed_calls.sum() <= params["calls"]
        with torch.no_grad():
            drawn = Instance(made.denoiser, plan.costs.graph, made.probe).run(plan.schedule, sampler=plan.sampler)
        assert torch.isfinite(drawn).all()


@pytest.mark.parametrize("name", METHODS)
def test_every_example_suits_a_family_and_bad_params_are_refused_in_one_line(name):
    """Every parameter takes wrong kinds of values in turn; so does a name that no method has."""
    families = [(family, instance(family)) for family in (SD15, DIT)]
    for good in method(name).module.EXAMPLES:
        suited = [each for each in families if name == "bk_sdm" or good in [p for p, _ in planned(name, *each)]]
        assert suited, good
        for key, wrong in [*product(good, WRONG), ("no_such_parameter", 1)]:
            with pytest.raises(DipgoError) as refusal:
                method(name).read({**good, key: wrong})
                method(name).plan(context(*suited[0], {**good, key: wrong}))
                raise DipgoError("it was taken")
            assert len(str(refusal.value).splitlines()) == 1
            fits = type(wrong) is type(good.get(key)) or wrong is None
            assert fits or str(refusal.value) != "it was taken", (key, wrong)


def test_listing_the_methods_loads_no_torch():
    code = "import sys; from baselines import METHODS; assert 'dipgo' in METHODS; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_an_unknown_method_and_a_taken_name_are_named():
    with pytest.raises(DipgoError, match="unknown method 'deepcach'; did you mean deepcache"):
        method("deepcach")
    with pytest.raises(DipgoError, match="there is a method 'dense' already"):
        METHODS["dense"] = "baselines.deepcache"
