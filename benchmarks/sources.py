"""Where a profile's weights, prompts and reference pictures come from: one `Source` a profile."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline

from benchmarks import assets, datasets, quality, random_weights
from benchmarks.features import EFFLITE0
from benchmarks.paper_configs import paper_model
from benchmarks.reference import Reference
from benchmarks.shards import shards
from benchmarks.spec import PROFILES, BenchmarkError, unknown
from benchmarks.zoo import zoo

INDEX = "model_index.json"
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")  # parts of a pipeline that no run needs


class Source(Protocol):
    """What the harness asks of a profile. Every answer raises a `BenchmarkError` for what is not there."""

    unscored: str
    """Why pictures of this source are not scored; empty where they are."""

    def revision(self, row: Mapping[str, Any]) -> str:
        """What a run rests on besides its settings: digests of its model, prompts, judge and references. `row`:
        the fields of a `RunSpec`."""

    def pipeline(self, model: str, dtype: torch.dtype) -> Any:
        """A diffusers pipeline, its denoiser and text encoders in `dtype`, its decoder in float32; wherever it lies."""

    def captions(self, prompts: str, model: str) -> list[str]:
        """The captions of a prompt set or, of one of classes, their names as the model knows them."""

    judge_model: str | None
    """The name that open_clip gives the judge's architecture, where it has one."""

    def judge(self) -> Path:
        """The folder of the open_clip model that scores pictures."""

    def reference(self, metric: str, prompts: str) -> Reference:
        """What the pictures of a prompt set are compared with in a set-level metric."""

    def centroids(self, model: str) -> Path | None:
        """The file of class centroids of a model that draws classes; None where classes are not scored."""

    def assets(self, row: Mapping[str, Any]) -> list[str]:
        """The names of what a run needs besides this repository and its packages."""

    def require(self, row: Mapping[str, Any]) -> None:
        """Raise for the first thing that a run needs and that is not there, before anything is begun."""


class Embedded:
    """The zoo, which lies in the repository."""

    unscored, judge_model = "", None
    JUDGE, REFERENCE, PROMPTS = "emoji-clip", "reference", "prompts"

    def revision(self, row: Mapping[str, Any]) -> str:
        if row.get("model") not in zoo.manifest():
            raise BenchmarkError(f"run {row.get('id')!r}: {unknown('model', row.get('model'), zoo.manifest())}")
        return ".".join(map(zoo.revision, (row["model"], self.JUDGE, self.REFERENCE, self.PROMPTS)))

    def pipeline(self, model: str, dtype: torch.dtype) -> Any:
        return read(zoo.model_path(model), dtype)

    def captions(self, prompts: str, model: str) -> list[str]:
        return [prompt.caption for prompt in zoo.prompts(prompts)]

    def judge(self) -> Path:
        return zoo.model_path(self.JUDGE)

    def reference(self, metric: str, prompts: str) -> Reference:
        if not metric.endswith(EFFLITE0.name):
            raise BenchmarkError(f"{metric}: of the zoo's real pictures there are only EfficientNet-Lite0's features")
        return Reference(zoo.model_path(self.REFERENCE) / "real.safetensors")

    def centroids(self, model: str) -> Path | None:
        return zoo.model_path(model) / "centroids.safetensors"

    def assets(self, row: Mapping[str, Any]) -> list[str]:
        return []

    def require(self, row: Mapping[str, Any]) -> None:
        zoo.verify(row["model"])
        _answer(self, row)


class Paper:
    """The paper's own models, prompts and judge, which lie in the folder of assets."""

    unscored, judge_model = "", "ViT-g-14"
    JUDGE = "clip-vit-g-14"
    TRAINING = "diffusiondb"
    NETWORKS = {"fid_clean": "inception-clean", "fid_paper": "inception-paper"}
    REAL = {"coco": "coco-images", "imagenet": "imagenet"}
    CLASSES = "imagenet"  # its prompts are the model's own class names

    def revision(self, row: Mapping[str, Any]) -> str:
        paper_model(row.get("model"))
        return ".".join("missing" if assets.missing(name) else assets.revision(name) for name in self.assets(row))

    def pipeline(self, model: str, dtype: torch.dtype) -> Any:
        folder = assets.locate(model)
        pipeline = sliced(read(folder, dtype))
        if hasattr(pipeline, "labels"):  # the pipeline's own lose classes that share a name
            pipeline.labels = {name: label for label, name in enumerate(datasets.class_names(folder))}
        return pipeline

    def captions(self, prompts: str, model: str) -> list[str]:
        return datasets.captions(prompts, assets.locate(model if prompts == self.CLASSES else prompts))

    def judge(self) -> Path:
        return assets.locate(self.JUDGE)

    def reference(self, metric: str, prompts: str) -> Reference:
        network, real = self.NETWORKS.get(metric), self.REAL.get(prompts)
        if network is None or real is None:
            raise BenchmarkError(f"{metric}: no real pictures are known for {prompts!r}, only for {[*self.REAL]}")
        return Reference(assets.locate(real), assets.locate(network), cache=assets.folder() / ".moments")

    def centroids(self, model: str) -> Path | None:
        return None

    def assets(self, row: Mapping[str, Any]) -> list[str]:
        metrics, prompts = row["metrics"], [name for name in row["prompts"] if name != self.CLASSES]
        judge = [self.JUDGE] if quality.needs_judge(metrics) else []
        compared = [metric for metric in metrics if metric in self.NETWORKS]
        real = [self.REAL[name] for name in row["prompts"] if compared and name in self.REAL]
        training = [] if self.CLASSES in row["prompts"] else [self.TRAINING]
        return [row["model"], *judge, *prompts, *training, *real, *(self.NETWORKS[metric] for metric in compared)]

    def require(self, row: Mapping[str, Any]) -> None:
        for name in self.assets(row):
            assets.locate(name)
        _answer(self, row)


class RandomWeights:
    """The paper's own models at full size with random weights: for time and memory, before anything is fetched."""

    unscored, judge_model = "random weights: their pictures are noise", None

    def revision(self, row: Mapping[str, Any]) -> str:
        paper_model(row.get("model"))
        return "random"

    def pipeline(self, model: str, dtype: torch.dtype) -> Any:
        return sliced(random_weights.pipeline(model, dtype, device=shards().device))

    def captions(self, prompts: str, model: str) -> list[str]:
        if prompts == Paper.CLASSES:
            return random_weights.CLASSES * datasets.PICTURES_OF_A_CLASS
        return [f"picture {index} of {prompts}" for index in range(datasets.LENGTHS[prompts])]

    def judge(self) -> Path:
        raise BenchmarkError(self.unscored)

    def reference(self, metric: str, prompts: str) -> Reference:
        raise BenchmarkError(self.unscored)

    def centroids(self, model: str) -> Path | None:
        return None

    def assets(self, row: Mapping[str, Any]) -> list[str]:
        return []

    def require(self, row: Mapping[str, Any]) -> None:
        paper_model(row["model"])


def _answer(own: Source, row: Mapping[str, Any]) -> None:
    """Ask for the captions and the real pictures of a run."""
    for prompts in row["prompts"]:
        own.captions(prompts, row["model"])
        for metric in row["metrics"]:
            if metric in quality.REFERENCED:
                own.reference(metric, prompts)


def sliced(pipeline: Any) -> Any:
    """A decoder that takes one picture after the other: at full size a batch of them does not fit."""
    pipeline.vae.enable_slicing()
    return pipeline


SOURCES: dict[str, Source] = dict(zip(PROFILES, (Embedded(), Paper(), RandomWeights()), strict=True))


def source(profile: str) -> Source:
    """A profile's source; raises `BenchmarkError` for an unknown one."""
    if profile not in SOURCES:
        raise unknown("profile", profile, SOURCES)
    return SOURCES[profile]


def read(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The pipeline in a folder of diffusers' own format, its decoder in float32; its model_index.json names its class.

    Raises `BenchmarkError` where the folder is no pipeline.
    """
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        kind = str(index["_class_name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(f"{folder} is no diffusers pipeline: no class in its {INDEX}") from error
    if not hasattr(diffusers, kind):
        pipelines = [known for known in dir(diffusers) if known.endswith("Pipeline")]
        raise BenchmarkError(f"{folder / INDEX}: {unknown('pipeline class', kind, pipelines)}")
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()  # it complains of parts of another class than published
    unused = dict.fromkeys(name for name in UNUSED if name in index)
    try:
        return DiffusionPipeline.from_pretrained(
            folder,
            dtype={"default": dtype, "vae": torch.float32},
            use_safetensors=True,
            local_files_only=True,
            **unused,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise BenchmarkError(f"{folder} cannot be read as a {kind}: {str(error).splitlines()[0]}") from error
