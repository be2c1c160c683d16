"""Reads the features or moments of real pictures that generated ones are compared with."""

from __future__ import annotations

import hashlib
import io
from os import PathLike
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from benchmarks.quality.features import EFFLITE0, Protocol, features
from benchmarks.quality.fid import FeatureSet, feature_set
from benchmarks.quality.pictures import picture_files
from benchmarks.specs.files import write_bytes
from benchmarks.specs.real import RealPictures
from dipgo.errors import DipgoError

READING = "2"  # counts the ways in which `pictures.read` has read: kept moments are of one
_kept: dict[str, tuple[str, FeatureSet]] = {}  # by the file's content: all rows of a table share one set


def load(real: RealPictures, protocol: Protocol, device: str = "cpu") -> FeatureSet:
    """Return real pictures in a protocol's features.

    Raises a `DipgoError` where they are absent or broken, of another protocol, or where neither their file nor
    `real.protocol` says of which one they are.
    """
    named, stored = _read(_file(real, protocol, device))
    name = named or real.protocol
    if not name:
        wanted = f"pass protocol={protocol.name!r} if it is of that"
        raise DipgoError(f"{real.path} does not say of which protocol its features are; {wanted}")
    if name != protocol.name:
        raise DipgoError(f"{real.path} is of the protocol {name!r}, not {protocol.name!r}; pass one of that")
    return stored


def _file(real: RealPictures, protocol: Protocol, device: str) -> Path:
    """Return the file of features or moments; that of a folder of pictures is made where it is not there yet."""
    if not real.path.is_dir():
        return real.path
    published = sorted(real.path.glob("*.npz"))
    if len(published) == 1:
        return published[0]
    if real.cache is None:
        raise DipgoError(f"{real.path} is a folder of pictures; say where to keep their moments")
    paths, weights = picture_files(real.path), protocol.weight_file(real.network)
    digests = [_digest(path) for path in ([*paths, weights] if weights else paths)]
    address = hashlib.sha256("".join([READING, *digests]).encode()).hexdigest()[:16]
    file = real.cache / f"{protocol.name}-{address}.npz"
    if not file.is_file():
        mu, sigma = feature_set(features(paths, protocol, real.network, real=True, device=device)).moments
        content = io.BytesIO()
        np.savez(content, mu=mu, sigma=sigma, protocol=np.array(protocol.name))
        write_bytes(file, content.getvalue())
    return file


def save_features(path: str | PathLike, values: np.ndarray, protocol: Protocol = EFFLITE0) -> None:
    """Write features [n, d] as a float16 safetensors file, whole or not at all."""
    narrow = feature_set(values).values.astype(np.float16)
    write_bytes(Path(path), safetensors.numpy.save({"features": narrow}, metadata={"protocol": protocol.name}))


def _read(path: Path) -> tuple[str, FeatureSet]:
    """Return the protocol that a file names, empty where it names none, and its features or moments."""
    try:
        content = _digest(path)
        if content not in _kept:
            _kept[content] = _moments(path) if path.suffix == ".npz" else _features(path)
        return _kept[content]
    except (OSError, SafetensorError, BadZipFile, EOFError, KeyError, ValueError) as error:
        raise DipgoError(f"cannot read feature file {path}: {error}; fetch it, or work it out, again") from error


def _moments(path: Path) -> tuple[str, FeatureSet]:
    with np.load(path, allow_pickle=False) as stored:
        name = str(stored["protocol"]) if "protocol" in stored else ""
        mu, sigma = (stored[key].astype(np.float64) for key in ("mu", "sigma"))
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)) or not np.isfinite([mu.sum(), sigma.sum()]).all():
        raise ValueError(f"mu {list(mu.shape)} and sigma {list(sigma.shape)} are no finite moments")
    return name, FeatureSet(None, (mu, sigma))


def _features(path: Path) -> tuple[str, FeatureSet]:
    with safe_open(path, "np") as stored:
        return (stored.metadata() or {}).get("protocol", ""), feature_set(stored.get_tensor("features"))


def _digest(path: str | Path) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
