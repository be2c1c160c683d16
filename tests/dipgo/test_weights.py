"""A model is read whole, from safetensors alone, or not at all."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from dipgo.errors import DipgoError
from dipgo.families.unet import SD15
from dipgo.weights import load_whole
from tests.helpers.pipelines import _text

FILES = {"unet": "diffusion_pytorch_model.safetensors", "text": "model.safetensors"}


@pytest.fixture(params=FILES)
def saved(request, tmp_path):
    """A folder with a tiny model of diffusers or of transformers, its class, and the file of its weights."""
    model = SD15.tiny() if request.param == "unet" else _text()[1]
    model.save_pretrained(tmp_path)
    return tmp_path, type(model), tmp_path / FILES[request.param]


def refused(folder, kind, message: str) -> None:
    with pytest.raises(DipgoError, match=message) as caught:
        load_whole(kind, folder)
    assert str(caught.value).startswith(str(folder)) and "\n" not in str(caught.value)


def test_a_whole_model_has_the_values_of_its_file(saved):
    folder, kind, file = saved
    model, stored = load_whole(kind, folder, torch.float16), load_file(file)
    assert not model.training and next(model.parameters()).dtype == torch.float16
    values = sorted((value.numel(), value.half().sum().item()) for value in stored.values())
    assert values == sorted((value.numel(), value.sum().item()) for value in model.state_dict().values())


def test_a_missing_weight_is_named(saved):
    folder, kind, file = saved
    weights = load_file(file)
    name = sorted(weights)[0]
    del weights[name]
    save_file(weights, file, metadata={"format": "pt"})
    refused(folder, kind, f"missing weights: .*{name.split('.', 1)[1]}; restore")


def test_a_weight_without_a_place_is_named(saved):
    folder, kind, file = saved
    save_file({**load_file(file), "somewhere.else": torch.ones(1)}, file, metadata={"format": "pt"})
    refused(folder, kind, "unexpected weights: somewhere.else; restore")


def test_a_weight_of_another_shape_is_refused(saved):
    folder, kind, file = saved
    weights = load_file(file)
    name = sorted(weights)[0]
    save_file({**weights, name: torch.ones(3)}, file, metadata={"format": "pt"})
    refused(folder, kind, "cannot be read|mismatched weights")


@pytest.mark.parametrize("text", ["", "{}", json.dumps({"metadata": {}, "weight_map": {}})])
def test_an_index_that_was_added_gives_no_random_weights(saved, text):
    folder, kind, file = saved
    file.with_name(f"{file.name}.index.json").write_text(text)
    try:
        model = load_whole(kind, folder)
    except DipgoError as error:
        assert "\n" not in str(error)
    else:  # transformers prefers the whole file to its index
        stored = sorted(value.sum().item() for value in load_file(file).values())
        assert sorted(value.sum().item() for value in model.state_dict().values()) == stored


@pytest.mark.parametrize("content", [b"", b"not weights", b"\x80\x04."])
def test_a_broken_file_is_refused(saved, content):
    folder, kind, file = saved
    file.write_bytes(content)
    refused(folder, kind, "cannot be read as a ")


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".ckpt"])
def test_pickled_weights_are_never_read(saved, suffix):
    folder, kind, file = saved
    torch.save(load_file(file), file.with_suffix(suffix))
    if suffix == ".bin" and kind.__module__.startswith("transformers"):
        torch.save(load_file(file), folder / "pytorch_model.bin")
    file.unlink()
    refused(folder, kind, "cannot be read as a .* from safetensors")
