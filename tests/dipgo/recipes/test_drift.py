"""The drift gate of a pipeline of one's own: quiet where nothing changed, and it names what did."""

from __future__ import annotations

import pytest
import torch

import dipgo
from dipgo.errors import DipgoError
from dipgo.recipes.drift import FILE, drift
from tests.helpers.pipelines import stable_diffusion

RUN = {"num_inference_steps": 3, "guidance_scale": 4.0, "output_type": "np"}


def test_it_is_quiet_until_something_changes(tmp_path):
    torch.manual_seed(0)
    pipe = stable_diffusion()
    first = drift(pipe, ["a fox", "a dog"], tmp_path, **RUN)
    assert first["stored"].endswith(FILE) and first["limit"] == 60
    assert drift(pipe, ["a fox", "a dog"], tmp_path, **RUN)["least"] == 100
    with pytest.raises(DipgoError, match="stored with seed = 0, not 1"):
        drift(pipe, ["a fox", "a dog"], tmp_path, seed=1, **RUN)
    recipe = dipgo.learn(pipe, ["a hen"], 0.5, **RUN)
    with dipgo.accelerate(pipe, recipe), pytest.raises(DipgoError, match="drifted: PSNR .* dB .95 % interval"):
        drift(pipe, ["a fox", "a dog"], tmp_path, **RUN)
    (tmp_path / FILE).write_bytes(b"nothing")
    with pytest.raises(DipgoError, match="no stored pictures"):
        drift(pipe, ["a fox", "a dog"], tmp_path, **RUN)


def test_the_fixture_stores_beside_the_test(tmp_path, monkeypatch):
    from types import SimpleNamespace

    from dipgo.recipes.pytest_plugin import dipgo_drift

    request = SimpleNamespace(path=tmp_path / "test_mine.py", node=SimpleNamespace(name="test_picture"))
    torch.manual_seed(0)
    stored = dipgo_drift.__wrapped__(request)(stable_diffusion(), ["a fox"], **RUN)
    assert (tmp_path / "drift" / "test_picture" / FILE).exists() and stored["pictures"] == 1
