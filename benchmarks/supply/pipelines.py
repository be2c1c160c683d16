"""Pipelines in folders of the format of diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from torch import nn

from dipgo.errors import DipgoError, first_line, unknown
from dipgo.files import read_json
from dipgo.weights import load_whole

INDEX = "model_index.json"
LIBRARIES = {"diffusers": diffusers, "transformers": transformers}
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts of a pipeline that no run needs."""
DECODER = "vae"


def sliced(pipeline: Any) -> Any:
    """Return the pipeline with a decoder that takes one picture after the other. At full size a batch of them does not
    fit into memory."""
    pipeline.vae.enable_slicing()
    return pipeline


def read(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """Return the pipeline in a folder. Its `model_index.json` names the classes of the pipeline and of its parts.

    folder: a pipeline in the format of diffusers, with weights in safetensors.
    dtype: what the weights are cast to, except for the decoder's, which stay in float32.

    Raises `DipgoError` where the folder is no pipeline, or where a weight is missing, left over or of another shape.
    """
    index = read_json(folder / INDEX, "a pipeline of diffusers")
    kind = index.get("_class_name") if isinstance(index, dict) else None
    if not isinstance(kind, str):
        raise DipgoError(f"{folder} is no diffusers pipeline: no class in its {INDEX}")
    if not hasattr(diffusers, kind):
        pipelines = [known for known in dir(diffusers) if known.endswith("Pipeline")]
        raise DipgoError(f"{folder / INDEX}: {unknown('pipeline class', kind, pipelines)}")
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()  # it complains of parts of another class than published
    parts: dict[str, Any] = dict.fromkeys(name for name in UNUSED if name in index)
    for name, part in _models(index).items():
        if name not in parts:
            parts[name] = load_whole(
                part, folder / name, torch.float32 if name == DECODER else dtype, local_files_only=True
            )
    try:
        return DiffusionPipeline.from_pretrained(folder, local_files_only=True, **parts)
    except (OSError, ValueError, RuntimeError) as error:
        raise DipgoError(f"{folder} cannot be read as a {kind}: {first_line(error)}") from error


def _models(index: dict[str, Any]) -> dict[str, type]:
    """Return the classes of the parts that have weights, by the names of the parts."""
    models = {}
    for name, entry in index.items():
        library, kind = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
        part = getattr(LIBRARIES.get(library), str(kind), None)
        if isinstance(part, type) and issubclass(part, nn.Module):
            models[name] = part
    return models
