from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch

from dipgo import (
    Batch,
    DipgoError,
    Forecast,
    Pruner,
    Schedule,
    State,
    TrainConfig,
    UnreachableRatio,
    gated,
    rollout,
    ruled,
    select_schedule,
    straight_through,
    train_pruner,
)
from dipgo.pruner.losses import CONSISTENCIES, consistency, sparsity
from dipgo.pruner.train import Coefficients


@pytest.mark.parametrize("encoder", ["linear", "attention", "none"])
def test_starts_by_keeping_everything(encoder):
    pruner = Pruner(5, 3, width=16, encoder=encoder, keep=0.6)
    scores = pruner.scores()
    assert scores.shape == (5, 3) and (scores[0] == 1).all()
    torch.testing.assert_close(scores[1:], torch.full((4, 3), 0.6))
    gates = straight_through(scores)
    assert (gates == 0).all() and sparsity(gates, torch.tensor([0.1, 0.5, 1.0])).item() == pytest.approx(1)


@pytest.mark.parametrize("encoder", ["linear", "attention", "none"])
def test_every_parameter_receives_a_gradient(encoder):
    torch.manual_seed(0)
    pruner = Pruner(4, 3, width=16, encoder=encoder)
    torch.nn.init.normal_(pruner.last, std=0.1)  # at zero, as at the start, nothing flows past the last layer
    weights = torch.rand(4, 3) + 0.5
    (straight_through(pruner.scores()) * weights).square().sum().backward()
    (straight_through(pruner.scores()) * weights).sum().backward()
    for name, parameter in pruner.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_the_first_step_moves_the_last_layer():
    pruner = Pruner(4, 3, width=16)
    straight_through(pruner.scores()).sum().backward()
    assert pruner.last.grad.abs().sum() > 0 and pruner.last_bias.grad.abs().sum() > 0


def test_straight_through_is_hard_forward_and_soft_backward():
    scores = torch.tensor([[1.0, 1.0], [0.2, 0.7]], requires_grad=True)
    gates = straight_through(scores)
    assert gates.tolist() == [[0, 0], [1, 0]]
    gates.sum().backward()
    assert scores.grad.tolist() == [[-1, -1], [-1, -1]]


@pytest.mark.parametrize("name", sorted(CONSISTENCIES))
def test_consistency_is_zero_for_equal_images_and_grows(name):
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    loss = consistency(name)
    assert loss(image, image).item() == pytest.approx(0, abs=1e-6)
    assert 0 < loss(image, image + 0.05).item() < loss(image, 1 - image).item()


def test_an_unknown_loss_or_encoder_is_named():
    with pytest.raises(DipgoError, match="did you mean ssim"):
        consistency("sim")
    with pytest.raises(DipgoError, match="encoder"):
        Pruner(3, 2, encoder="liner")


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.7])
def test_one_set_of_scores_serves_every_ratio(tiny, tiny_costs, ratio):
    scores = np.random.default_rng(0).random((40, 9))
    schedule = select_schedule(scores, ratio, tiny_costs)
    assert abs(tiny_costs.pruned_ratio(schedule) - ratio) < 0.0125
    assert not schedule.reuse[0].any()


@pytest.mark.parametrize("ratio", [0, 1, -0.1, 1.5, float("nan")])
def test_a_ratio_outside_zero_and_one_is_refused(tiny_costs, ratio):
    with pytest.raises(DipgoError, match="between 0 and 1"):
        select_schedule(np.ones((4, 9)), ratio, tiny_costs)


def test_an_unreachable_ratio_says_what_can_be_had(tiny, tiny_costs):
    scores = np.random.default_rng(0).random((4, 9))  # the first call is kept whole, so at most 3/4 can go
    with pytest.raises(UnreachableRatio, match="0.75"):
        select_schedule(scores, 0.9, tiny_costs)


def test_scores_of_a_diverged_training_are_refused(tiny_costs):
    with pytest.raises(DipgoError, match="diverged"):
        select_schedule(np.full((4, 9), np.nan), 0.5, tiny_costs)


def batches(tiny, sampler):
    with torch.no_grad():
        images = decode(rollout(tiny.diffusion(sampler), tiny.inputs))
    return itertools.repeat(Batch(tiny.inputs, images))


def decode(latents):
    return (latents[:, :3].repeat_interleave(2, 2).repeat_interleave(2, 3) / 8 + 0.5).sigmoid()


def train(tiny, costs, **settings):
    config = TrainConfig(**{"width": 16, "checkpoint": False, "lr": 5.0, **settings})
    sampler = tiny.sampler("ddim", 5)
    return list(train_pruner(config, tiny.diffusion(sampler), costs, batches(tiny, sampler), decode))


def test_training_starts_at_loss_zero_and_sparsity_one_and_then_prunes(tiny, tiny_costs):
    tiny.denoiser.zero_grad()  # other tests share it
    steps = train(tiny, tiny_costs, steps=8)
    assert [s.step for s in steps] == list(range(1, 9))
    assert steps[0].consistency == pytest.approx(0, abs=1e-5) and steps[0].sparsity == pytest.approx(1)
    assert steps[-1].sparsity < 1
    assert all(p.requires_grad for p in tiny.denoiser.parameters())
    assert all(p.grad is None for p in tiny.denoiser.parameters())


def test_training_is_repeatable_and_sees_its_seed(tiny, tiny_costs):
    runs = [train(tiny, tiny_costs, steps=3, seed=seed)[-1].pruner.scores() for seed in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_below_tau_the_sparsity_term_is_off(tiny, tiny_costs):
    free = train(tiny, tiny_costs, steps=2, tau=1.1)  # already reached at the start: nothing pushes gates away
    assert free[-1].sparsity == pytest.approx(1)


def test_a_trained_pruner_becomes_a_schedule(tiny, tiny_costs):
    scores = train(tiny, tiny_costs, steps=4, accumulate=2)[-1].pruner.scores().detach().numpy()
    schedule = select_schedule(scores, 0.5, tiny_costs, tolerance=0.1)
    assert isinstance(schedule, Schedule) and schedule.calls == 5


@pytest.mark.parametrize("order", [0, 1])
def test_learned_coefficients_start_as_holding_or_as_a_linear_forecast_exactly(tiny, order):
    sampler = tiny.sampler("plms", 8)
    reuse = tiny.random_reuse(sampler.calls)
    rule = Forecast(sampler.noise_ratios, order)
    given = Coefficients(tiny.graph, rule)(reuse.float()).detach()
    plain = Schedule(tiny.graph.sites, reuse.numpy())
    assert Schedule(plain.sites, plain.reuse, given.numpy()).digest == ruled(rule, tiny.graph, plain).digest


def test_a_gate_that_computes_is_told_what_reusing_would_give(tiny):
    """Its gradient is the difference between the two."""
    sampler = tiny.sampler("ddim", 6)
    given = Coefficients(tiny.graph, Forecast(sampler.noise_ratios, 1))(torch.zeros(6, len(tiny.graph.sites)))
    torch.testing.assert_close(given[1:].sum(-1), torch.ones(5, len(tiny.graph.sites)))
    assert (given[2:] != 0).all()  # of two values that were computed, in the second call there is one


@pytest.mark.parametrize("checkpoint", [False, True])
def test_gradients_reach_gates_and_changes_where_something_is_reused(tiny, checkpoint):
    sampler = tiny.sampler("ddim", 6)
    coefficients = Coefficients(tiny.graph, Forecast(sampler.noise_ratios, 1))
    gates = tiny.random_reuse(6).float().requires_grad_()
    with gated(tiny.denoiser, tiny.graph, gates, coefficients=coefficients(gates), checkpoint=checkpoint):
        rollout(tiny.diffusion(sampler), tiny.inputs).square().mean().backward()
    reused = tiny.graph.execute(Schedule(tiny.graph.sites, gates.detach().bool().numpy())).reused
    moved = coefficients.changes.grad.abs().sum(-1).numpy() > 0
    assert moved.any() and not (moved & ~reused).any()
    assert gates.grad[1:, -1].abs().min() > 0


def test_soft_gates_with_changed_coefficients_give_what_the_schedule_gives(tiny):
    sampler = tiny.sampler("ddim", 6)
    coefficients = Coefficients(tiny.graph, Forecast(sampler.noise_ratios, 1))
    torch.nn.init.normal_(coefficients.changes, std=0.05, generator=torch.Generator().manual_seed(0))
    gates = tiny.random_reuse(6).float()
    with torch.no_grad():
        given = coefficients(gates)
        found = []
        for how, soft in ((gates, given), (Schedule(tiny.graph.sites, gates.bool().numpy(), given.numpy()), None)):
            with gated(tiny.denoiser, tiny.graph, how, coefficients=soft):
                found.append(rollout(tiny.diffusion(sampler), tiny.inputs))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


def test_training_with_forecasts_starts_from_the_dense_run_and_moves_what_they_give(tiny, tiny_costs):
    fixed, learned = (
        train(tiny, tiny_costs, steps=6, order=1, coefficient_lr=rate)[-1].pruner.scores() for rate in (0.0, 5.0)
    )
    held = train(tiny, tiny_costs, steps=6)[-1].pruner.scores()
    assert not torch.equal(fixed, learned) and not torch.equal(fixed, held)
    first = train(tiny, tiny_costs, steps=1, order=1, coefficient_lr=5.0)[0]
    assert first.consistency == pytest.approx(0, abs=1e-5) and first.sparsity == pytest.approx(1)


def test_the_papers_settings_hold():
    assert (TrainConfig.order, TrainConfig.coefficient_lr) == (0, 0)


def test_a_schedule_with_a_rule_meets_the_ratio_with_what_forecasting_costs(tiny_costs):
    scores = np.random.default_rng(0).random((40, 9))
    rule = Forecast(np.linspace(10, 0.1, 40), 1)
    schedule = select_schedule(scores, 0.7, tiny_costs, rule)
    assert schedule.digest == ruled(rule, tiny_costs.graph, schedule).digest and schedule.depth == 2
    assert abs(tiny_costs.pruned_ratio(schedule) - 0.7) < 0.0125


RESUMED = {
    "the paper's": {},
    "accumulated, with coefficients": {"accumulate": 2, "order": 1, "coefficient_lr": 0.05},
    "self-attention": {"encoder": "attention", "weight_decay": 0.01},
}


@pytest.mark.parametrize("name", RESUMED)
@pytest.mark.parametrize("stop", [1, 3])
def test_a_training_that_goes_on_after_a_stop_ends_bit_for_bit_alike(tiny, tiny_costs, name, stop):
    config = TrainConfig(**{"width": 16, "checkpoint": False, "lr": 5.0, "steps": 4, **RESUMED[name]})
    sampler = tiny.sampler("ddim", 3)
    diffusion, images = tiny.diffusion(sampler), next(batches(tiny, sampler)).images
    noises = [Batch(replace(tiny.inputs, noise=tiny.noise + 0.1 * i), images) for i in range(8)]

    def steps(drawn, resume=None):
        return train_pruner(config, diffusion, tiny_costs, iter(drawn), decode, resume)

    whole = [(s.step, s.consistency, s.sparsity, s.pruner.scores()) for s in steps(noises)]
    stopped = steps(noises)
    state = [next(stopped) for _ in range(stop)][-1].state()
    stopped.close()
    tensors = safetensors.torch.load(safetensors.torch.save(dict(state.tensors)))
    kept = State(tensors, json.loads(json.dumps(state.data)))
    torch.manual_seed(99)
    again = [
        (s.step, s.consistency, s.sparsity, s.pruner.scores()) for s in steps(noises[stop * config.accumulate :], kept)
    ]
    assert [each[:3] for each in again] == [each[:3] for each in whole[stop - 1 :]]
    for one, other in zip(again, whole[stop - 1 :], strict=True):
        assert torch.equal(one[3], other[3])


def test_a_state_of_other_settings_is_refused_by_their_name(tiny, tiny_costs):
    state = next(iter(train(tiny, tiny_costs, steps=1))).state()
    for name, value in (("lr", 4.0), ("steps", 2), ("encoder", "none")):
        config = TrainConfig(**{"width": 16, "checkpoint": False, "lr": 5.0, "steps": 1, name: value})
        with pytest.raises(DipgoError, match=f"made with {name} = .*, not {value!r}"):
            next(train_pruner(config, tiny.diffusion(tiny.sampler("ddim", 5)), tiny_costs, iter(()), decode, state))


@pytest.mark.parametrize("settings", [{"lr": 0.0}, {"lr": 1e-4, "steps": 2}, {"keep": 0.99, "lr": 0.1}])
def test_a_training_that_learned_nothing_says_what_to_change(tiny, tiny_costs, caplog, settings):
    train(tiny, tiny_costs, **{"steps": 1, **settings})
    (record,) = caplog.records
    assert "the pruner has learned nothing" in record.message and "raise lr or steps, or lower keep" in record.message
    assert f"at lr {settings['lr']:g}" in record.message and "\n" not in record.message


def test_a_training_that_learned_says_nothing(tiny, tiny_costs, caplog):
    assert train(tiny, tiny_costs, steps=8)[-1].sparsity < 1
    assert not caplog.records
