from __future__ import annotations

import functools
import gc
import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.__main__ import main
from benchmarks.commands.macs import count_run
from benchmarks.models.shapes import paper_model, plan, without_weights
from dipgo import (
    FAMILIES,
    Batch,
    Diffusion,
    DipgoError,
    Family,
    Inputs,
    Outcome,
    Sampler,
    Schedule,
    TrainConfig,
    family_of,
    gated,
    initial_noise,
    rollout,
    train_pruner,
)

CALLS = 4
INPUT = ("sample", "hidden_states", "timestep")


@pytest.mark.parametrize("unit", ["output", "delta"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_without_weights_every_site_counts_as_with_weights(family: Family, unit):
    counts = []
    for device in ("cpu", "meta"):
        with torch.device(device):
            denoiser = family.tiny()
        counts.append(family.costs(denoiser, family.sites(denoiser, unit)))
    assert counts[0].graph == counts[1].graph
    for convention in ("paper", "full"):
        weights, shapes = (getattr(each, convention) for each in counts)
        assert np.array_equal(weights.sites, shapes.sites) and weights.rest == shapes.rest


@pytest.fixture(scope="module", params=["sd15", "dit-xl-2"])
def full_size(request) -> Iterator[tuple[str, nn.Module]]:
    """A denoiser of the paper with random weights, made for a small latent; gone afterwards."""
    denoiser = without_weights(paper_model(request.param), sample_size=8).to_empty(device="cpu")
    noise = torch.empty(1_000_003).uniform_(-0.02, 0.02, generator=torch.Generator().manual_seed(0))
    for values in (*denoiser.parameters(), *denoiser.buffers()):
        for part in values.view(-1).split(len(noise)):  # the same noise over and over: billions of draws take minutes
            part.copy_(noise[: len(part)])
    yield request.param, denoiser
    del denoiser, values, part
    gc.collect()  # hooks and modules hold each other


def test_at_full_size_schedule_cost_and_executor_agree(full_size):
    name, denoiser = full_size
    family = family_of(denoiser)
    sites = family.sites(denoiser)
    costs = family.costs(denoiser, sites)
    shapes = family.costs(small := without_weights(paper_model(name), sample_size=8), family.sites(small))
    assert np.array_equal(costs.full.sites, shapes.full.sites) and costs.paper.dense == shapes.paper.dense

    reuse = np.random.default_rng(0).random((CALLS, len(sites))) < 0.4
    reuse[0], reuse[2] = False, True
    schedule = Schedule(sites, reuse)
    execution = costs.graph.execute(schedule)
    conditioning = {key: value for key, value in family.probe(denoiser).items() if key not in INPUT}
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        with gated(denoiser, costs.graph, schedule) as trace:
            latents = rollout(
                Diffusion(denoiser, Sampler("ddim", {}, CALLS), 1.0),
                Inputs(initial_noise([0], (4, 8, 8)), conditioning),
            )
    assert latents.isfinite().all()
    assert np.array_equal(trace.outcomes == Outcome.COMPUTED, execution.computed)
    assert np.array_equal(trace.outcomes == Outcome.REUSED, execution.reused)
    assert counter.get_total_flops() // 2 == costs.full.per_call(execution).sum()


@pytest.mark.parametrize("full_size", ["sd15"], indirect=True)
def test_at_full_size_one_training_step_of_the_pruner_runs(full_size):
    denoiser = full_size[1]
    family = family_of(denoiser)
    costs = family.costs(denoiser, family.sites(denoiser))
    text = family.probe(denoiser)["encoder_hidden_states"]
    noise = initial_noise([0], (4, 16, 16))
    batch = Batch(Inputs(noise, {"encoder_hidden_states": text.repeat(2, 1, 1)}, [0]), torch.rand(1, 3, 16, 16))
    config = TrainConfig(steps=1, lr=1.0)
    decode = functools.partial(torch.narrow, dim=1, start=0, length=3)  # three of the latent's channels as an image
    sampler = Sampler("ddim", {}, CALLS)
    (step,) = train_pruner(config, Diffusion(denoiser, sampler, 7.5), costs, iter([batch]), decode)
    scores = step.pruner.scores()[1:]
    assert np.isfinite(step.consistency) and step.sparsity == pytest.approx(1)
    assert scores.isfinite().all() and (scores != scores.mean()).any()  # the gates got gradients


@pytest.mark.parametrize(
    ("name", "millions"), [("sd15", 859.5), ("sd21", 865.9), ("sdxl-lcm", 2567.5), ("bk-sdm-small", 482.3)]
)
def test_the_configurations_give_the_published_sizes(name, millions):
    parameters = sum(p.numel() for p in without_weights(paper_model(name)).parameters())
    assert parameters / 1e6 == pytest.approx(millions, abs=0.1)


def test_a_schedule_is_counted_by_one_command(tmp_path, capsys):
    sites = family_of(model := without_weights(paper_model("dit-xl-2"))).sites(model)
    file = tmp_path / "schedule.json"
    Schedule.skip_calls(sites, 10, [0, 5]).save(file)
    command = ["macs", "--model", "dit-xl-2", "--steps", "10", "--schedule", str(file)]
    assert main([*command, "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts["computed_calls"] == 2 and counts["step_skip_share"] == pytest.approx(1)
    assert counts["macs_full"] == 2 * counts["macs_paper"]  # both guidance branches; attention is in either
    assert counts["macs_paper"] / counts["dense_paper"] == pytest.approx(0.2, abs=1e-3)
    assert main(command) == 0 and f"computed_calls {counts['computed_calls']}\n" in capsys.readouterr().out
    assert count_run("dit-xl-2", "ddim", 10)["step_skip_share"] is None

    for wrong, message in [
        (["--steps", "20"], "error: schedule has 10 calls, but ddim at 20 steps makes 20"),
        (["--model", "sd15"], "error: UNet2DConditionModel has no module 'transformer_blocks.0'"),
        (["--model", "sd51"], "error: unknown model of the paper 'sd51'; did you mean"),
        (["--schedule", str(tmp_path / "nothing")], "error: "),
    ]:
        assert main([*command, *wrong]) == 1
        error = capsys.readouterr().err
        assert error.startswith(message) and error.count("\n") == 1
    assert main(["macs", "--json"]) == 1 and "name its --model" in capsys.readouterr().err


def test_a_method_that_needs_images_is_refused():
    with pytest.raises(DipgoError, match="needs pictures"):
        plan("dit-xl-2", Sampler("ddim", {}, 10), "dipgo", {"ratio": 0.5, "train": {"unit": "output"}})
