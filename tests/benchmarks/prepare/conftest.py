"""A zoo of one tiny class-conditional model, for preparations that really run."""

from __future__ import annotations

import pytest
import torch

from benchmarks.models import model as models
from benchmarks.specs.run import RunSpec
from benchmarks.supply import pipelines, zoo
from tests.helpers.pipelines import CLASSES, dit

TINY = {
    "profile": "embedded",
    "model": "tiny-dit",
    "revision": "0",
    "scheduler": "ddim",
    "guidance": 2.0,
    "resolution": 16,
    "dtype": "float32",
    "prompts": ("classes",),
    "limit": 2,
    "seed": 0,
    "metrics": (),
}


def spec_of(method: str, steps: int, **params) -> RunSpec:
    """A run of the tiny model."""
    return RunSpec(id=method, method=method, steps=steps, params=params, **TINY)


@pytest.fixture
def tiny_zoo(monkeypatch, tmp_path):
    """The zoo holds one class-conditional model and prompt sets of its classes."""
    torch.manual_seed(0)
    dit().save_pretrained(tmp_path / "dit")
    model = models.prepared(TINY["model"], pipelines.read(tmp_path / "dit"))
    sets = dict.fromkeys(("classes", "train"), [zoo.Prompt(i, CLASSES[i % 3], "", "") for i in range(60)])
    monkeypatch.setattr(models, "load", lambda setting: model)
    monkeypatch.setattr(zoo, "prompts", lambda name, model=None: sets[name])
    return model
