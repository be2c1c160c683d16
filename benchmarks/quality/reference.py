"""Real pictures that generated ones are compared with: files of features or of moments, or a folder of pictures."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from functools import cache
from os import PathLike
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from benchmarks.quality.features import EFFLITE0, PAPER, Protocol, features, picture_files
from benchmarks.quality.fid import FeatureSet, feature_set
from benchmarks.specs.files import write_bytes
from dipgo.errors import DipgoError


@dataclass(frozen=True)
class Reference:
    """What a set of pictures is compared with.

    `real` is a feature file (see `save_features`), an .npz of moments (`mu` [d] and `sigma` [d, d]), a folder that
    holds one, or a folder of pictures, whose moments are worked out once and kept in the folder `cache`. `network` is
    the folder of the weights of the protocol's network, which sees the pictures that are compared, too.
    """

    real: Path
    network: Path | None = None
    cache: Path | None = None

    def load(self, protocol: Protocol, device: str = "cpu") -> FeatureSet:
        """The reference in a protocol's features. `DipgoError` where it is absent, broken or another protocol's."""
        found, stored = _read(self._file(protocol, device))
        if found != protocol.name:
            raise DipgoError(f"{self.real} is of the protocol {found!r}, not {protocol.name!r}; pass one of that")
        return stored

    def _file(self, protocol: Protocol, device: str) -> Path:
        """The file of features or moments; that of a folder's pictures goes by their content and their network's."""
        if not self.real.is_dir():
            return self.real
        published = sorted(self.real.glob("*.npz"))
        if len(published) == 1:
            return published[0]
        if self.cache is None:
            raise DipgoError(f"{self.real} is a folder of pictures; say where to keep their moments")
        paths, weights = picture_files(self.real), protocol.weight_file(self.network)
        digests = [_digest(path) for path in ([*paths, weights] if weights else paths)]
        address = hashlib.sha256("".join(digests).encode()).hexdigest()[:16]
        file = self.cache / f"{protocol.name}-{address}.npz"
        if not file.is_file():
            mu, sigma = feature_set(features(paths, protocol, self.network, real=True, device=device)).moments
            content = io.BytesIO()
            np.savez(content, mu=mu, sigma=sigma, protocol=np.array(protocol.name))
            write_bytes(file, content.getvalue())
        return file


def save_features(path: str | PathLike, values: np.ndarray, protocol: Protocol = EFFLITE0) -> None:
    """Writes features [n, d] as a float16 safetensors file, whole or not at all."""
    narrow = feature_set(values).values.astype(np.float16)
    write_bytes(Path(path), safetensors.numpy.save({"features": narrow}, metadata={"protocol": protocol.name}))
    _read.cache_clear()


@cache
def _read(path: Path) -> tuple[str, FeatureSet]:
    """A file's protocol and its set, kept: all rows of a table share one reference.

    Where a file names no protocol, its features are EfficientNet-Lite0's, and its moments the paper's: they are those
    that others published, of the same network.
    """
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as stored:
                name = str(stored["protocol"]) if "protocol" in stored else PAPER.name
                mu, sigma = (stored[key].astype(np.float64) for key in ("mu", "sigma"))
            if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)) or not np.isfinite([mu.sum(), sigma.sum()]).all():
                raise ValueError(f"mu {list(mu.shape)} and sigma {list(sigma.shape)} are no finite moments")
            return name, FeatureSet(None, (mu, sigma))
        with safe_open(path, "np") as stored:
            name = (stored.metadata() or {}).get("protocol", EFFLITE0.name)
            return name, feature_set(stored.get_tensor("features"))
    except (OSError, SafetensorError, BadZipFile, EOFError, KeyError, ValueError) as error:
        raise DipgoError(f"cannot read feature file {path}: {error}; fetch it, or work it out, again") from error


def _digest(path: str | Path) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
