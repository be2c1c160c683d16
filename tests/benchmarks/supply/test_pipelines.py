"""A pipeline is read whole or refused by one line."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.supply.pipelines import read
from dipgo.errors import DipgoError
from tests.helpers.pipelines import dit, stable_diffusion

UNET, TEXT, VAE = "unet/diffusion_pytorch_model", "text_encoder/model", "vae/diffusion_pytorch_model"


@pytest.fixture
def folder(tmp_path):
    stable_diffusion().save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("make", [stable_diffusion, dit])
def test_a_pipeline_has_its_weights_and_dtypes(tmp_path, make):
    saved = make()
    saved.save_pretrained(tmp_path)
    pipeline = read(tmp_path, torch.float16)
    assert type(pipeline) is type(saved) and pipeline.vae.dtype == torch.float32
    for name, part in saved.components.items():
        if isinstance(part, torch.nn.Module):
            values = getattr(pipeline, name).state_dict()
            assert all(
                torch.equal(values[key], value.to(values[key].dtype)) for key, value in part.state_dict().items()
            )
            assert name == "vae" or getattr(pipeline, name).dtype == torch.float16


@pytest.mark.parametrize("part", [UNET, TEXT, VAE])
def test_no_part_is_initialised_at_random(folder, part):
    weights = load_file(folder / f"{part}.safetensors")
    save_file(dict(list(weights.items())[1:]), folder / f"{part}.safetensors", metadata={"format": "pt"})
    with pytest.raises(DipgoError, match=f"{part.split('/')[0]}: missing weights") as caught:
        read(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", [UNET, VAE])
def test_an_added_index_gives_no_random_weights(folder, part):
    (folder / f"{part}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {}}))
    with pytest.raises(DipgoError, match=part.split("/")[0]) as caught:
        read(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "no class in its model_index.json"),
        ("{}", "no class in its model_index.json"),
        ('{"_class_name": 3}', "no class in its model_index.json"),
        ('{"_class_name": "DiTPipelin"}', "unknown pipeline class 'DiTPipelin'; did you mean DiTPipeline"),
        ('{"_class_name": ', "model_index.json: not a pipeline of diffusers"),
        ('{"_class_name": "DiTPipeline", "_class_name": "DiTPipeline"}', "'_class_name' comes twice"),
    ],
)
def test_a_folder_that_is_no_pipeline_is_named(folder, text, message):
    (folder / "model_index.json").write_text(text)
    with pytest.raises(DipgoError, match=message) as caught:
        read(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
