from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.zoo.training import emoji_dit, emoji_xl
from benchmarks.zoo.training.diffusion import Objective, batches, fit, shared_parts, trained, warm_start


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_perfect_prediction_costs_nothing(prediction):
    objective = Objective(prediction)
    drawn = objective.draw(torch.randn(8, 2, 4, 4))
    objective.draw = lambda latents: drawn
    assert objective(torch.zeros(8), lambda noisy, steps: drawn[2]) == 0
    assert objective(torch.zeros(8), lambda noisy, steps: drawn[2] + 1) > 0


def test_both_predictions_weigh_an_error_of_the_clean_latents_alike():
    latents, error = torch.randn(16, 2, 4, 4), 0.1

    def cost(prediction: str) -> torch.Tensor:
        torch.manual_seed(0)
        objective = Objective(prediction)
        _, steps, target, weight = objective.draw(latents)
        alpha = objective.noise.alphas_cumprod[steps]
        scale = {"epsilon": alpha.sqrt() / (1 - alpha).sqrt(), "v_prediction": 1 / (1 - alpha).sqrt()}[prediction]
        return (weight * (error * scale).square()).mean()

    assert torch.allclose(cost("epsilon"), cost("v_prediction"))


def test_a_warm_start_takes_what_fits_and_silences_fresh_branches():
    class Net(nn.Module):
        def __init__(self, projection: nn.Module, width: int) -> None:
            super().__init__()
            self.proj_in, self.conv2 = projection, nn.Conv2d(2, width, 3)

    source, model = Net(nn.Conv2d(4, 6, 1), 3), Net(nn.Linear(4, 6), 5)
    share = warm_start(model, source.state_dict())
    assert torch.equal(model.proj_in.weight, source.proj_in.weight.squeeze())
    assert not model.conv2.weight.any() and not model.conv2.bias.any()
    assert share == pytest.approx(30 / (30 + 95))


def test_batches_see_every_row_once_a_pass():
    rows = batches(10, 4)
    seen = torch.cat([next(rows) for _ in range(5)])
    assert torch.equal(seen[:10].sort().values, torch.arange(10))
    assert torch.equal(seen[10:].sort().values, torch.arange(10))


def test_an_interrupted_training_goes_on_where_it_stopped(tmp_path):
    torch.manual_seed(0)
    model, goal = nn.Linear(3, 1), torch.randn(64, 3)

    def loss() -> torch.Tensor:
        return (model(goal) - goal.sum(1, keepdim=True)).square().mean()

    fit(tmp_path, "line", 0.005, model, loss, rate=1e-2)
    first = trained(tmp_path, "line", nn.Linear(3, 1))
    fit(tmp_path, "line", 0.01, model, loss, rate=1e-2)
    second = trained(tmp_path, "line", nn.Linear(3, 1))
    assert second["updates"] > first["updates"] > 0
    assert second["seconds"] >= first["seconds"]


def test_a_fresh_dit_passes_its_tokens_on_and_predicts_nothing():
    model = emoji_dit.build(5)
    null = torch.tensor([5])
    noisy, steps = torch.randn(1, 8, 8, 8), torch.tensor([10])
    tokens = model.pos_embed(noisy)
    with torch.no_grad():
        assert torch.equal(model.transformer_blocks[3](tokens, timestep=steps, class_labels=null), tokens)
        assert not model(noisy, timestep=steps, class_labels=null).sample.any()


def test_sd_xl_reads_what_emoji_sd_reads():
    shared, encoder = shared_parts(), emoji_xl.text_encoder()
    tokens = shared["tokenizer"](["red apple, twitter"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        found, wanted = encoder(tokens, output_hidden_states=True), shared["text_encoder"](tokens)
    normalised = encoder.text_model.final_layer_norm(found.hidden_states[-2])
    assert torch.allclose(normalised, wanted.last_hidden_state, atol=1e-5)
    assert torch.allclose(found.text_embeds, wanted.pooler_output, atol=1e-5)
