"""What every method of the registry keeps to, on every family that it supports."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from baselines import METHODS, PlanContext, method
from baselines.random_scores import TOLERANCE
from benchmarks import ROOT
from dipgo import FAMILIES, DipgoError, Sampler, Schedule
from tests.conftest import SD_SCHEDULER
from tests.helpers.contract import Instance, instance
from tests.helpers.studio import TinyStudio

CALLS = 6
WRONG = ("", "0.5", None, -1, True, float("nan"), [], {}, {"no_such_setting": 1})


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


def examples(name: str, family, made: Instance) -> Iterator[dict[str, Any]]:
    """The params with which a method plans for a family. What it does not support it refuses in one line."""
    for params in method(name).module.EXAMPLES:
        try:
            method(name).plan(context(family, made, params))
        except DipgoError as error:
            assert len(str(error).splitlines()) == 1
            continue
        yield params


@pytest.mark.parametrize("name", METHODS)
def test_plans_are_valid_deterministic_within_the_asked_macs_and_go_through_json(tiny_family, name):
    for params in examples(name, *tiny_family):
        one, other = (method(name).plan(context(*tiny_family, params)) for _ in range(2))
        assert one.schedule.digest == other.schedule.digest and one.sampler == other.sampler
        one.costs.graph.check(one.schedule)
        again = Schedule.from_dict(json.loads(json.dumps(one.schedule.to_dict())))
        assert again.digest == one.schedule.digest and (again.reuse == one.schedule.reuse).all()
        if "ratio" in params:
            assert one.costs.pruned_ratio(one.schedule) > params["ratio"] - TOLERANCE
        if "calls" in params:
            assert one.costs.graph.execute(one.schedule).computed_calls.sum() <= params["calls"]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_supports_a_family_with_each_of_its_examples(name):
    if name == "bk_sdm":
        pytest.skip("its denoisers are retrained U-Nets; tests/baselines/test_bk_sdm.py plans for them")
    supported = [params for family in FAMILIES for params in examples(name, family, instance(family))]
    assert all(params in supported for params in method(name).module.EXAMPLES)


@pytest.mark.parametrize("name", METHODS)
def test_a_plan_runs(tiny_family, name):
    family, made = tiny_family
    for params in examples(name, family, made):
        plan = method(name).plan(context(family, made, params))
        other = Instance(made.denoiser, plan.costs.graph, made.probe)
        with torch.no_grad():
            assert torch.isfinite(other.run(plan.schedule)).all()


@pytest.mark.parametrize("name", METHODS)
def test_bad_params_are_refused_in_one_line(tiny_family, name):
    """Every parameter takes wrong kinds of values in turn, and a name that no method has."""
    family, made = tiny_family
    for good in method(name).module.EXAMPLES:
        for key in good:
            for wrong in WRONG:
                params = {**good, key: wrong}
                try:
                    plan = method(name).plan(context(family, made, params))
                except DipgoError as error:
                    assert str(error) and len(str(error).splitlines()) == 1
                else:  # a value that is one of the parameter's kind
                    assert type(wrong) is type(good[key]) or wrong is None or isinstance(wrong, dict)
                    assert np.isfinite(plan.costs.pruned_ratio(plan.schedule))
        with pytest.raises(DipgoError, match="unknown parameter 'no_such_parameter'"):
            method(name).plan(context(family, made, {**good, "no_such_parameter": 1}))


def test_listing_the_methods_loads_no_torch():
    code = "import sys; from baselines import METHODS; assert 'dipgo' in METHODS; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_an_unknown_method_and_a_taken_name_are_named():
    with pytest.raises(DipgoError, match="unknown method 'deepcach'; did you mean deepcache"):
        method("deepcach")
    with pytest.raises(DipgoError, match="there is a method 'dense' already"):
        METHODS["dense"] = "baselines.deepcache"
