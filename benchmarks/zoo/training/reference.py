"""EfficientNet-Lite0 features of the generator's real pictures, the reference of FID-EffLite0 and KID."""

from __future__ import annotations

import tempfile
from pathlib import Path

from PIL import Image

from benchmarks.quality.features import features
from benchmarks.quality.reference import save_features
from benchmarks.zoo.training.common import ZOO, arguments, write_card
from benchmarks.zoo.training.pictures import load


def main() -> None:
    args = arguments(__doc__)
    data = load(args.work)
    with tempfile.TemporaryDirectory() as folder:
        for chosen in data.sets.values():
            for i in chosen:
                Image.fromarray(data.pixels[i]).save(Path(folder) / f"{i:05}.png")
        values = features(folder)
    (ZOO / "reference").mkdir(exist_ok=True)
    save_features(ZOO / "reference" / "real.safetensors", values)
    write_card(args.work, "reference", {"pictures": len(values), "features": values.shape[1]})


if __name__ == "__main__":
    main()
