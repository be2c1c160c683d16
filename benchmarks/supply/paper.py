"""The paper profile."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.specs.metrics import CLEAN, JUDGE, PAPER, scored, takes
from benchmarks.specs.real import RealPictures
from benchmarks.supply import assets, datasets
from benchmarks.supply.paper_configs import PAPER_MODELS, paper_model
from benchmarks.supply.pipelines import read, sliced
from benchmarks.supply.source import ask_for_data
from dipgo.errors import DipgoError


class Paper:
    """The paper's own models, prompts and judge, which lie in the folder of assets."""

    judge_model = "ViT-g-14"
    JUDGE = "clip-vit-g-14"
    TRAINING = "diffusiondb"
    NETWORKS = {CLEAN: "inception-clean", PAPER: "inception-paper"}
    REAL = {"coco": "coco-images", "imagenet": "imagenet"}
    CLASSES = "imagenet"  # the prompts of this set are the names of the classes that the model draws

    def revision(self, row: Mapping[str, Any]) -> str:
        paper_model(row.get("model"))
        return ".".join("missing" if assets.missing(name) else assets.revision(name) for name in self.assets(row))

    def pipeline(self, model: str, dtype: torch.dtype) -> Any:
        folder = assets.locate(model)
        pipeline = sliced(read(folder, dtype))
        if hasattr(pipeline, "labels"):  # the pipeline's own lose classes that share a name
            pipeline.labels = {name: label for label, name in enumerate(datasets.class_names(folder))}
        return pipeline

    def models(self) -> list[str]:
        return [*PAPER_MODELS]

    def prompt_sets(self) -> list[str]:
        return [*datasets.LENGTHS]

    def captions(self, prompts: str, model: str) -> list[str]:
        return datasets.captions(prompts, assets.locate(model if prompts == self.CLASSES else prompts))

    def judge(self) -> Path:
        return assets.locate(self.JUDGE)

    def real_pictures(self, protocol: str, prompts: str) -> RealPictures:
        network, real = self.NETWORKS.get(protocol), self.REAL.get(prompts)
        if network is None or real is None:
            known = f"only in {[*self.NETWORKS]} and for {[*self.REAL]}"
            raise DipgoError(f"no real pictures are known in {protocol!r} features for {prompts!r}, {known}")
        # The published moments of ImageNet are those of the paper's network, and do not say so.
        return RealPictures(assets.locate(real), assets.locate(network), assets.folder() / ".moments", PAPER)

    def centroids(self, model: str) -> Path | None:
        return None

    def assets(self, row: Mapping[str, Any]) -> list[str]:
        metrics, prompts = row["metrics"], [name for name in row["prompts"] if name != self.CLASSES]
        judge = [self.JUDGE] if JUDGE in takes(metrics) else []
        networks = [self.NETWORKS[each.protocol] for each in scored(metrics) if each.protocol in self.NETWORKS]
        real = [self.REAL[name] for name in row["prompts"] if networks and name in self.REAL]
        training = [] if self.CLASSES in row["prompts"] else [self.TRAINING]
        return [row["model"], *judge, *prompts, *training, *real, *networks]

    def require(self, row: Mapping[str, Any]) -> None:
        for name in self.assets(row):
            assets.locate(name)
        ask_for_data(self, row)
