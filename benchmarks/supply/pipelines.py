"""Pipelines in folders of diffusers' format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline

from dipgo.errors import DipgoError, unknown

INDEX = "model_index.json"


UNUSED = ("safety_checker", "feature_extractor", "image_encoder")  # parts of a pipeline that no run needs


def sliced(pipeline: Any) -> Any:
    """A decoder that takes one picture after the other: at full size a batch of them does not fit."""
    pipeline.vae.enable_slicing()
    return pipeline


def read(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The pipeline in a folder of diffusers' own format, its decoder in float32; its model_index.json names its class.

    Raises `DipgoError` where the folder is no pipeline.
    """
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        kind = str(index["_class_name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DipgoError(f"{folder} is no diffusers pipeline: no class in its {INDEX}") from error
    if not hasattr(diffusers, kind):
        pipelines = [known for known in dir(diffusers) if known.endswith("Pipeline")]
        raise DipgoError(f"{folder / INDEX}: {unknown('pipeline class', kind, pipelines)}")
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
        raise DipgoError(f"{folder} cannot be read as a {kind}: {str(error).splitlines()[0]}") from error
