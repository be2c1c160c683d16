"""A drift gate for a pipeline of one's own: it stores pictures and what they cost once, and fails when they change."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dipgo.errors import DipgoError, first_line
from dipgo.files import parse_json, write_bytes
from dipgo.recipes.learn import interval, quiet
from dipgo.recipes.record import draw, psnr
from dipgo.sampling import picture_seeds

FILE = "dipgo_drift.safetensors"
LEAST = 60.0  # dB; pictures that are nearer than that to the stored ones have not changed to the eye or to 8 bits
REPEATS = 2


def drift(pipe: Any, prompts: Sequence[Any], folder: Path | str, *, seed: int = 0, **arguments: Any) -> dict[str, Any]:
    """Compare a pipeline's pictures with the stored ones; the first time, store them. Return what was measured.

    pipe: the pipeline, in an `accelerate` context or without.
    prompts: the pictures, as `dipgo.learn` takes them.
    folder: where they are stored. It is for this machine: the limit is the least PSNR between repeats on it, at most
        60 dB.
    seed: decides their noise.
    arguments: the pipeline's own.

    Raises `DipgoError` that names the metric, its size, its interval and the limit where pictures have drifted, and
    where the folder holds other pictures.
    """
    path = Path(folder) / FILE
    identity = {"prompts": len(prompts), "seed": seed, "arguments": json.loads(json.dumps(arguments, default=repr))}
    stored = _read(path, identity) if path.exists() else None
    pictures = list(zip(prompts, picture_seeds(seed, range(len(prompts))), strict=True))
    with quiet(pipe):
        drawn = [draw(pipe, *picture, arguments) for picture in pictures]
        if stored is None:
            again = [draw(pipe, *picture, arguments) for _ in range(REPEATS - 1) for picture in pictures]
            repeats = min(psnr(one, drawn[place % len(drawn)]) for place, one in enumerate(again))
            return _write(path, drawn, {**identity, "limit": min(LEAST, repeats)})
    values = [psnr(now, then) for now, then in zip(drawn, stored["pictures"], strict=True)]
    found = {**interval(values), "least": min(values), "limit": stored["limit"]}
    if min(values) < stored["limit"]:
        bounds = f" (95 % interval {found['low']:.2f} to {found['high']:.2f})" if "low" in found else ""
        raise DipgoError(
            f"the pictures have drifted: PSNR to the stored ones is {found['psnr']:.2f} dB{bounds}, at least "
            f"{min(values):.2f} in picture {int(np.argmin(values))}, where repeats allow {stored['limit']:.2f}; "
            f"find what changed, or remove {path} to store them anew"
        )
    return found


def _write(path: Path, pictures: Sequence[np.ndarray], data: Mapping[str, Any]) -> dict[str, Any]:
    from safetensors.numpy import save

    arrays = {str(place): np.ascontiguousarray(picture) for place, picture in enumerate(pictures)}
    write_bytes(path, save(arrays, {"data": json.dumps(data)}))
    return {"pictures": len(pictures), "limit": data["limit"], "stored": str(path)}


def _read(path: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    from safetensors import safe_open

    try:
        with safe_open(path, "np") as file:
            data = parse_json(file.metadata()["data"])
            pictures = [file.get_tensor(str(place)) for place in range(data["prompts"])]
    except Exception as error:  # safetensors raises what it likes on a damaged file
        raise DipgoError(f"{path}: no stored pictures ({first_line(error)}); remove it to store them anew") from None
    for name, value in identity.items():
        if data.get(name) != value:
            raise DipgoError(f"{path} was stored with {name} = {data.get(name)!r}, not {value!r}; give another folder")
    return {"pictures": pictures, "limit": float(data["limit"])}
