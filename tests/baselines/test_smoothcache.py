from __future__ import annotations

import numpy as np
import pytest
import torch

from baselines import PlanContext, method
from baselines.smoothcache import held, holding_errors
from dipgo import Diffusion, Inputs, Sampler, Site, UnreachableRatio, initial_noise
from dipgo.families import DIT, SD15
from tests.conftest import SD_SCHEDULER
from tests.helpers.contract import instance
from tests.helpers.studio import TinyStudio

CALLS = 10


def test_a_layer_is_held_from_its_last_computed_call_while_the_error_is_small():
    errors = np.full((7, 3), 0.5)
    errors[1:4, 0], errors[2, 1], errors[3, 2] = 0.1, 0.2, 0.6
    errors[5:, 0] = 0.1
    assert held(errors, 0.2).tolist() == [False, True, True, False, False, True, False]
    assert held(errors, 0.5).tolist() == [False, True, True, False, True, True, True]
    assert held(errors, 9.0).tolist() == [False, True, True, True, False, True, True]  # three in a row at most


@pytest.mark.parametrize("family", [DIT, SD15], ids=lambda family: family.name)
def test_errors_of_holding_are_those_of_the_values_that_a_dense_run_makes(family):
    made = instance(family, "layer")
    inputs = Inputs(initial_noise([5, 6], (4, 8, 8)), made.conditioning)
    values = []
    site = made.graph.sites[0].removesuffix(":delta")  # the first of its kind; a delta's stream is its first input

    def see(module, args, kwargs, output):
        values.append(output - (module.conv_shortcut or torch.nn.Identity())(args[0]) if family is SD15 else output)

    sampler = Sampler("ddim", SD_SCHEDULER, 4)
    graph = family.costs(made.denoiser, made.graph.sites[:1]).graph
    handle = made.denoiser.get_submodule(site).register_forward_hook(see, with_kwargs=True)
    errors = holding_errors(Diffusion(made.denoiser, sampler, 3.0), graph, inputs, longest=2)
    handle.remove()
    change = [(values[3] - values[3 - k]).abs().mean() / values[3].abs().mean() for k in (1, 2)]
    assert errors[Site.parse(site).kind][3].tolist() == pytest.approx([float(c) for c in change], rel=1e-4)
    assert errors[Site.parse(site).kind][1, 1] == 0 and (errors[Site.parse(site).kind][0] == 0).all()


def test_the_threshold_is_the_smallest_that_prunes_the_ratio_and_too_much_is_refused():
    made = instance(DIT)
    rng = np.random.default_rng(0)
    errors = {kind: rng.random((CALLS, 4)).round(3).tolist() for kind in ("attn1", "ff")}
    costs = DIT.costs(made.denoiser, DIT.sites(made.denoiser))

    def plan(ratio: float):
        studio = TinyStudio({"holding": {"errors": errors}})
        context = PlanContext(made.denoiser, costs, Sampler("ddim", SD_SCHEDULER, CALLS), {"ratio": ratio}, studio)
        return method("smoothcache").plan(context)

    plans = {ratio: plan(ratio) for ratio in (0.1, 0.2, 0.3)}
    for ratio, found in plans.items():
        assert 0 <= found.costs.pruned_ratio(found.schedule, "full") - ratio < 0.1
    schedule = plans[0.3].schedule
    columns = schedule.reuse.T.reshape(-1, 2, CALLS)
    assert (columns == columns[:1]).all() and schedule.coefficients is None  # a kind is held as one
    with pytest.raises(UnreachableRatio, match="at most here"):
        plan(0.95)
