"""The paper's models, as `paper_configs.toml` describes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from torch import nn

from baselines import bk_sdm
from benchmarks.specs.files import construct, read_toml
from dipgo.registry import Registry

FILE = Path(__file__).with_suffix(".toml")


@dataclass(frozen=True)
class PaperModel:
    """A pipeline's class and its parts."""

    pipeline: type
    parts: Mapping[str, tuple[type, dict[str, Any]]]
    """The class of each part with the configuration that its checkpoint was published with, by the name of the
    pipeline's argument."""
    branches: int = 2
    """How many guidance branches a step of the pipeline runs."""
    bk_sdm: str = ""
    """The name of the BK-SDM variant that the U-Net is cut down to; empty where it stays whole."""

    def denoiser(self, **changes: Any) -> nn.Module:
        """Return the U-Net or transformer alone, with `changes` to its configuration."""
        kind, config = self.parts.get("unet") or self.parts["transformer"]
        denoiser = kind(**{**config, **changes})
        return bk_sdm.build(denoiser, self.bk_sdm) if self.bk_sdm else denoiser


def _extended(tables: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Any]:
    """Return a table's fields over those of the table that it extends."""
    table = dict(tables[name])
    base = table.pop("extends", None)
    return {**(_extended(tables, base) if base else {}), **table}


def _read(path: Path = FILE) -> dict[str, PaperModel]:
    data = read_toml(path)

    def part(name: str) -> tuple[type, dict[str, Any]]:
        config = _extended(data["part"], name)
        return resolve_name(config.pop("class")), config

    models = {}
    for name in data["model"]:
        fields = _extended(data["model"], name)
        fields["pipeline"] = resolve_name(f"diffusers:{fields['pipeline']}")
        fields["parts"] = {argument: part(chosen) for argument, chosen in fields["parts"].items()}
        models[name] = construct(PaperModel, fields, f"{path}: {name}")
    return models


PAPER_MODELS: Registry[PaperModel] = Registry("model of the paper", _read())


def paper_model(name: str) -> PaperModel:
    """Return a model of the paper. Raises `DipgoError` for an unknown name."""
    return PAPER_MODELS[name]
