"""EfficientNet-Lite0 features of the generators' real pictures, the reference of FID-EffLite0 and KID."""

from __future__ import annotations

import tempfile
from pathlib import Path

from PIL import Image

from benchmarks.quality.features import features
from benchmarks.quality.real import save_features
from benchmarks.zoo.training.common import ZOO
from benchmarks.zoo.training.pictures import load_pictures


def write_reference(work: Path) -> None:
    """Writes the features, unless they are there: the pictures do not change with the models."""
    target = ZOO / "reference" / "real.safetensors"
    if target.exists():
        return
    data = load_pictures(work)
    with tempfile.TemporaryDirectory() as folder:
        for key in ("train", "seen", "held-out"):
            for i in data.sets[key]:
                Image.fromarray(data.pixels[i]).save(Path(folder) / f"{i:05}.png")
        save_features(target, features(folder))
