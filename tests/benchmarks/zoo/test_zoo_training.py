"""The zoo's trainings: the loop resumes, a checkpoint loads into its model, and every objective learns something."""

from __future__ import annotations

import json
import shutil

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from benchmarks.zoo.training import decoder, judge, mmdit
from benchmarks.zoo.training.__main__ import QUEUE
from benchmarks.zoo.training.common import CHECKPOINTS, batches, write_weights
from benchmarks.zoo.training.denoisers import Conditioner, Noising, captioned, live_pipeline, weighted
from benchmarks.zoo.training.loop import Training, load, train
from benchmarks.zoo.training.pictures import EXTRA_STYLE, class_names, class_of_name, load_pictures

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
NAMES = ("sunflower", "red apple", "cactus", "snail")
STYLES = ("google", "twitter", "fluent", EXTRA_STYLE)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A scratch folder with 16 made-up pictures, as `prepare` would write them."""
    folder = tmp_path_factory.mktemp("work")
    captions = [f"{name}, {style}" for style in STYLES for name in NAMES]
    pixels = np.random.default_rng(0).integers(0, 255, (len(captions), 64, 64, 3), dtype=np.uint8)
    sets = {"train": np.arange(8), "seen": np.array([8, 9]), "held-out": np.array([10, 11]), "flat": np.arange(12, 16)}
    np.savez(folder / "pictures.npz", pixels=pixels, captions=np.array(captions), **sets)
    return folder


def line(rate: float = 1e-2) -> Training:
    """The training of a line through points that lie on one."""

    def objective(work, model):
        points = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
        return lambda progress: (model(points) - points.sum(1, keepdim=True)).square().mean()

    def measure(work, model):
        return {"bias": abs(model.bias.item())}

    return Training("line", 0.02, rate, lambda: nn.Linear(3, 1), objective, measure)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_perfect_prediction_costs_nothing(prediction):
    _, _, target, weight = Noising(SCHEDULE | {"prediction_type": prediction}).draw(torch.randn(8, 2, 4, 4))
    assert weighted(weight, target, target) == 0
    assert weighted(weight, target + 1, target) > 0


def test_both_predictions_weigh_an_error_of_the_clean_latents_alike():
    latents, error = torch.randn(16, 2, 4, 4), 0.1

    def cost(prediction: str) -> torch.Tensor:
        torch.manual_seed(0)
        noising = Noising(SCHEDULE | {"prediction_type": prediction})
        _, steps, _, weight = noising.draw(latents)
        alpha = noising.scheduler.alphas_cumprod[steps]
        scale = {"epsilon": alpha.sqrt() / (1 - alpha).sqrt(), "v_prediction": 1 / (1 - alpha).sqrt()}[prediction]
        return (weight * (error * scale).square()).mean()

    assert torch.allclose(cost("epsilon"), cost("v_prediction"))


def test_batches_see_every_row_once_a_pass():
    rows = batches(10, 4)
    seen = torch.cat([next(rows) for _ in range(5)])
    assert torch.equal(seen[:10].sort().values, torch.arange(10))
    assert torch.equal(seen[10:].sort().values, torch.arange(10))


def test_an_interrupted_run_goes_on_where_it_stopped_and_one_that_is_over_stays(tmp_path):
    train(line(), tmp_path, 0.005, tmp_path / "checkpoints")
    first = load(line(), tmp_path / "checkpoints")[1]["runs"]
    train(line(), tmp_path, 0.01, tmp_path / "checkpoints")
    second = load(line(), tmp_path / "checkpoints")[1]["runs"]
    assert len(first) == len(second) == 1
    assert second[0]["updates"] > first[0]["updates"] > 0
    assert second[0]["seconds"] >= first[0]["seconds"]
    train(line(), tmp_path, 0.01, tmp_path / "checkpoints")
    assert load(line(), tmp_path / "checkpoints")[1]["runs"] == second


def test_another_machine_goes_on_from_the_checkpoint(tmp_path):
    """The first run's averaged weights are what the second one starts from, and its card keeps both."""
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    train(line(), first, 0.02, tmp_path / "checkpoints")
    kept = load_file(tmp_path / "checkpoints/line/model.safetensors")
    assert {t.dtype for t in kept.values()} == {torch.float16}
    train(line(rate=0.0), second, 0.005, tmp_path / "checkpoints")  # a rate of 0 leaves the weights alone
    again, card = load(line(), tmp_path / "checkpoints")
    assert torch.equal(again.weight, kept["weight"].float()) and torch.equal(again.bias, kept["bias"].float())
    assert [run["rate"] for run in card["runs"]] == [1e-2, 0.0]
    assert card["runs"][0]["measured"]["bias"] < 0.5


@pytest.mark.parametrize("training", QUEUE, ids=lambda training: training.name)
def test_every_objective_learns_from_a_batch(training, work):
    """One batch gives a finite loss, and a gradient to every weight that is trained."""
    torch.manual_seed(0)
    model = training.build().train()
    loss = training.objective(work, model)(0.9)
    loss.backward()
    assert loss.isfinite() and loss > 0
    silent = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert silent == []


@pytest.mark.parametrize("training", QUEUE, ids=lambda training: training.name)
def test_a_checkpoint_loads_into_its_model(training, tmp_path):
    """A committed one where there is one, else one that is written here."""
    folder = CHECKPOINTS / training.name
    if not (folder / "model.safetensors").exists():
        folder = tmp_path / training.name
        write_weights(folder / "model.safetensors", training.build().state_dict())
        (folder / "card.json").write_text(json.dumps({"runs": [{}]}))
    model, card = load(training, folder.parent)
    assert card["runs"]
    stored = load_file(folder / "model.safetensors")
    assert {t.dtype for t in stored.values() if t.is_floating_point()} == {torch.float16}
    for name, value in model.state_dict().items():
        assert torch.equal(value, stored[name].to(value.dtype)), name
        assert value.isfinite().all(), name


def test_dropped_captions_get_the_empty_ones_condition(work):
    pipeline = live_pipeline("emoji-sd")
    conditioner = Conditioner(pipeline, captioned(work))
    rows = conditioner(torch.tensor([0, 1]), torch.tensor([True, False]))["encoder_hidden_states"]
    kept, empty = (pipeline.encode_prompt(text, "cpu", 1, False)[0][0] for text in (captioned(work).captions[1], ""))
    assert torch.allclose(rows[0], empty, atol=1e-5) and torch.allclose(rows[1], kept, atol=1e-5)


def test_held_out_pictures_and_what_shows_them_stay_out_of_training(work):
    data = load_pictures(work)
    assert not {*data.trained().tolist()} & {*data.sets["held-out"].tolist()}
    assert not {*data.not_held_out().tolist()} & {*data.sets["held-out"].tolist()}
    assert len(captioned(work).latents) == len(captioned(work).captions) == 14


def test_the_classes_are_those_of_the_class_conditional_model(work):
    assert class_names() == sorted(live_pipeline("emoji-dit").labels)
    numbers = load_pictures(work).class_numbers()
    assert class_names()[numbers[1]] == class_of_name()["red apple"] == "food-fruit"


def test_sd_xl_reads_what_emoji_sd_reads():
    """emoji-xl-lcm's text encoder adds a layer that adds nothing, as SD-XL reads the layer before the last."""
    first, second = live_pipeline("emoji-sd"), live_pipeline("emoji-xl-lcm")
    tokens = first.tokenizer(["red apple, twitter"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        drawn, wanted = second.text_encoder_2(tokens, output_hidden_states=True), first.text_encoder(tokens)
    normalised = second.text_encoder_2.text_model.final_layer_norm(drawn.hidden_states[-2])
    assert torch.allclose(normalised, wanted.last_hidden_state, atol=1e-3)  # stored as float16
    assert torch.allclose(drawn.text_embeds, wanted.pooler_output, atol=1e-3)


def test_flux_tokens_are_two_by_two_latents():
    latents = torch.arange(8 * 64.0).view(1, 8, 8, 8)
    tokens = mmdit.pack(latents)
    assert tokens.shape == (1, 16, 32)
    assert set(tokens[0, 0].tolist()) == set(latents[0, :, :2, :2].flatten().tolist())


def test_a_fresh_mmdit_predicts_nothing_and_draws_by_its_stock_pipeline():
    pipeline = mmdit.pipeline_of(mmdit.build())
    pictures = mmdit.draw(pipeline, ["red apple, twitter", "cactus, twitter"], steps=2)
    assert pictures.shape == (2, 3, 64, 64)
    assert not pipeline.transformer.proj_out.weight.any()


def test_an_installed_judge_loads_by_open_clip_and_is_what_the_next_training_starts_from(tmp_path, monkeypatch):
    shutil.copytree(judge.LIVE, tmp_path / "emoji-clip")
    monkeypatch.setattr(judge, "LIVE", tmp_path / "emoji-clip")
    monkeypatch.setattr(judge, "PROTOTYPES", tmp_path / "centroids.safetensors")
    trained = load(judge.TRAINING)[0].eval()
    judge.install(tmp_path, trained, {})
    again = judge.build().eval()
    pictures = torch.rand(2, 3, 64, 64) * 2 - 1
    wanted = judge.image_features(trained, pictures)
    assert torch.allclose(judge.image_features(again, pictures), wanted, atol=1e-2)  # stored as float16
    assert torch.allclose(again.prototypes(), trained.prototypes(), atol=1e-3)
    shipped = open_clip.create_model_and_transforms(f"local-dir:{judge.LIVE}")[0].eval()
    with torch.no_grad():
        large = torch.nn.functional.interpolate(pictures, judge.SIZE, mode="bicubic", antialias=True).clamp(-1, 1)
        assert torch.allclose(shipped.encode_image(large, normalize=True), wanted, atol=1e-2)


def test_the_cards_runs_outlive_the_installed_weights(tmp_path):
    train(line(), tmp_path, 0.003, tmp_path / "checkpoints")
    (tmp_path / "checkpoints/line/model.safetensors").unlink()
    assert len(load(line(), tmp_path / "checkpoints")[1]["runs"]) == 1


def test_augmented_pictures_stay_pictures():
    torch.manual_seed(0)
    pictures = judge.augment(torch.ones(64, 3, 64, 64))
    assert pictures.shape == (64, 3, judge.SIZE, judge.SIZE) and pictures.abs().max() <= 1
    assert (pictures.mean((1, 2, 3)) > 0.5).float().mean() > 0.9  # white stays bright, but for what is hidden


def test_retrieval_counts_the_pictures_whose_own_text_is_nearest():
    texts = torch.eye(10)
    images = texts.clone()
    images[0], images[1] = texts[1], texts[0]
    assert judge.retrieval(images, texts, among=10) == 0.8


def test_the_decoder_starts_as_the_live_one_and_the_encoder_is_not_part_of_it():
    live, latents = decoder.live_vae(), torch.randn(1, 8, 8, 8)
    with torch.no_grad():
        assert torch.equal(decoder.build()(latents), live.decode(latents).sample)
    assert not any("encoder" in name or name.startswith("quant") for name in decoder.build().state_dict())


def test_a_discriminator_learns_to_tell_real_from_decoded():
    torch.manual_seed(0)
    discriminator, real, decoded = decoder.Discriminator(), torch.ones(8, 3, 64, 64), -torch.ones(8, 3, 64, 64)
    for _ in range(30):
        discriminator.learn(real, decoded)
    assert discriminator(real).mean() > discriminator(decoded).mean() + 0.5
