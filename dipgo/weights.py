"""Models that are read whole: from safetensors alone, and with no weight missing or left over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging
from torch import nn

from dipgo.errors import DipgoError, first_line

PROBLEMS = ("missing", "unexpected", "mismatched")
SHOWN = 3
"""How many weights an error names."""


def load_whole(kind: type, source: Path | str, dtype: torch.dtype = torch.float32, **where: Any) -> nn.Module:
    """Return a model of diffusers or transformers in evaluation mode, with every weight as the checkpoint has it.

    kind: the class of the model.
    source: a folder in the format of diffusers, or the id of a repository of the hub.
    dtype: what the weights are cast to.
    where: further arguments of `from_pretrained` that say where the model lies, such as `subfolder`.

    Raises `DipgoError` where there are no safetensors (pickled weights are never read), or where a weight is missing,
    left over or of another shape: such a model would be initialised at random in part.
    """
    place = "/".join(map(str, [source, *([where["subfolder"]] if "subfolder" in where else [])]))
    options = {"dtype": dtype, "use_safetensors": True, "output_loading_info": True, **where}
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)  # what diffusers would warn of is an error below
    try:
        model, info = kind.from_pretrained(source, **options)
    except Exception as error:  # the loaders and safetensors raise what they like on a damaged checkpoint
        reason = first_line(error).rstrip(" .")
        raise DipgoError(f"{place} cannot be read as a {kind.__name__} from safetensors: {reason}") from error
    finally:
        logging.set_verbosity(verbosity)
    for problem in PROBLEMS:
        if names := sorted(map(str, info.get(f"{problem}_keys", ()))):
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            raise DipgoError(
                f"{place}: {problem} weights: {', '.join(names[:SHOWN])}{more}; restore the published files"
            )
    return model.eval()
