"""What the paper profile takes from elsewhere: weights and data sets, each in a folder that is checked before use.

An asset lies in `assets/<name>`, or below the folder that the environment variable DIPGO_ASSETS names.
`python -m benchmarks fetch NAME` puts it there (see `benchmarks.supply.fetch`), or its user links a copy there.
`assets.toml` lists what it must hold. Nothing here downloads. No torch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tomllib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from benchmarks import ROOT
from benchmarks.specs.files import construct, write_text
from dipgo.errors import DipgoError, unknown

REGISTRY = Path(__file__).with_suffix(".toml")
LOCK = "lock.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
LOOKED_AT = ("*.index.json", "adapter_*", "*.py", "added_tokens.json")
"""Files that change what a loader makes of a folder. One that was not published is refused."""
BIG = 1_000_000_000
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """Files of one repository of the hub, or one file behind a URL."""

    bytes: int
    """What it downloads, about."""
    files: list[str]
    """Names or patterns of the files, as they are published."""
    repo: str = ""
    url: str = ""
    revision: str = ""
    """The full commit of the repository; empty for the newest one."""
    dataset: bool = False
    """Whether the repository is a data set."""
    into: str = ""
    """The folder of the asset that the files go to."""
    unpack: list[str] = field(default_factory=list)
    """Names or patterns of the members that are kept of an archive; empty where the files are no archives."""
    torchscript: bool = False
    """Whether the files are TorchScript, which stays as it is."""
    sha256: dict[str, str] = field(default_factory=dict)
    """Digests by published name, as far as they are known."""
    fallbacks: list[dict[str, str]] = field(default_factory=list)
    """Other places of the same files: each a `url`, or a `repo` with its `revision`."""

    def stored(self, published: str) -> str:
        """Return where a published file lies in the asset's folder. Pickled weights are converted to safetensors."""
        path = PurePosixPath(self.into, published)
        return str(path if self.torchscript or path.suffix not in PICKLES else path.with_suffix(".safetensors"))

    @property
    def patterns(self) -> list[str]:
        """The patterns of its files in the asset's folder."""
        return [self.stored(name) for name in self.unpack or self.files]

    @property
    def digests(self) -> dict[str, str]:
        """The sha256 of each stored file that is as it was published."""
        kept = {} if self.unpack else self.sha256
        into = PurePosixPath(self.into)
        return {str(into / name): value for name, value in kept.items() if self.stored(name) == str(into / name)}


@dataclass(frozen=True)
class Asset:
    """A folder of weights or data."""

    name: str
    license: str
    note: str
    """What a user should know of it."""
    parts: list[Part]
    own: list[str] = field(default_factory=list)
    """Patterns of the files that a copy of the user's may hold instead of the files of the parts."""

    @property
    def path(self) -> Path:
        """Its folder."""
        return folder() / self.name

    @property
    def digests(self) -> dict[str, str]:
        """{file: sha256} of the files whose digests are known."""
        return {name: value for part in self.parts for name, value in part.digests.items()}

    @property
    def remedy(self) -> str:
        """How a user gets it."""
        return f"run `python -m benchmarks fetch {self.name}`, or link an own copy to {self.path}"


def folder() -> Path:
    """Return the folder that holds the assets."""
    return Path(os.environ.get("DIPGO_ASSETS") or ROOT / "assets")


def registry() -> dict[str, Asset]:
    """Return all assets by name."""
    return _registry(REGISTRY)


@cache
def _registry(path: Path) -> dict[str, Asset]:
    assets = {}
    for name, data in tomllib.loads(path.read_text(encoding="utf-8")).items():
        parts = [construct(Part, part, f"{path.name}, {name}") for part in data["parts"]]
        assets[name] = construct(Asset, {**data, "name": name, "parts": parts}, f"{path.name}, {name}")
    return assets


def asset(name: str) -> Asset:
    """Return an asset. Raises `DipgoError` for an unknown name."""
    if name not in registry():
        raise unknown("asset", name, registry())
    return registry()[name]


def size(name: str) -> int:
    """Return how many bytes fetching an asset downloads, about."""
    return sum(part.bytes for part in asset(name).parts)


def missing(name: str) -> str | None:
    """Return why an asset cannot be used, with the way out; None where nothing speaks against it. Reads no big file."""
    entry = asset(name)
    try:
        _present(entry)
    except DipgoError as error:
        return str(error)
    return None


def locate(name: str) -> Path:
    """Return the folder of an asset. Raises `DipgoError` where a file is not as it was published or fetched."""
    verified(name)
    return asset(name).path


def revision(name: str) -> str:
    """Return 12 hex digits of the names and the content of an asset's files, wherever they came from."""
    text = "".join(f"{file} {digest}\n" for file, digest in sorted(verified(name).items()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def verified(name: str) -> dict[str, str]:
    """Return {file: sha256} of an asset. Raises `DipgoError` for a file that is absent, truncated or changed."""
    entry = asset(name)
    found = digests(entry.path, _present(entry), name)
    locked = {file: value["sha256"] for file, value in _lock(entry).items()}
    for file, digest in found.items():
        for source, known in (("published", entry.digests), ("fetched", locked)):
            if known.get(file, digest) != digest:
                raise DipgoError(f"{entry.path / file} is not the file that was {source}; {entry.remedy}")
    return found


def digests(root: Path, files: Iterable[str], name: str) -> dict[str, str]:
    """Return {file: sha256} of files.

    root: the folder that they lie in.
    files: their paths below it.
    name: the asset, whose digests are remembered. A file is read again only where its size, its time of change or its
        place on the disk has changed, so that the next start is quick.
    """
    store = folder() / ".digests" / f"{name}.json"
    try:
        known = json.loads(store.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    kept = {}
    for file in files:
        status = (root / file).stat()
        identity = [status.st_size, status.st_mtime_ns, status.st_ino]
        entry = known.get(file)
        if not entry or entry[:3] != identity:
            if status.st_size > BIG:
                log.info("reading %s once, to know that it is whole", root / file)
            with (root / file).open("rb") as stream:
                entry = [*identity, hashlib.file_digest(stream, "sha256").hexdigest()]
        kept[file] = entry
    if {**known, **kept} != known:
        with suppress(DipgoError):  # a full disk or one that may only be read: then it is read again
            write_text(store, json.dumps({**known, **kept}))
    return {file: entry[3] for file, entry in kept.items()}


def _present(entry: Asset) -> list[str]:
    """Return the files of an asset, sorted. Raises `DipgoError` for what is wrong and can be told without reading
    them."""
    path = entry.path
    if not path.is_dir():
        raise DipgoError(f"{entry.name} is not at {path}; {entry.remedy}")
    found, lacking = _match(path, [pattern for part in entry.parts for pattern in part.patterns])
    if lacking and entry.own:
        found, also_lacking = _match(path, entry.own)
        lacking = also_lacking and lacking
    if lacking:
        raise DipgoError(f"{path} lacks {lacking[0]}; {entry.remedy}")
    scripts = {pattern for part in entry.parts if part.torchscript for pattern in part.patterns}
    for file in sorted(path.rglob("*")):
        if file.suffix in PICKLES and str(file.relative_to(path)) not in scripts & set(entry.digests):
            raise DipgoError(
                f"{file} holds pickled weights, which are never loaded; remove it from the own copy (and bring "
                f"safetensors instead), or run `python -m benchmarks fetch {entry.name}` without it"
            )
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if name not in found and any(fnmatch(file.name, pattern) for pattern in LOOKED_AT):
            raise DipgoError(f"{file} was not published with {entry.name}, and a loader may look at it; remove it")
    for file, value in _lock(entry).items():
        actual = (path / file).stat().st_size if (path / file).is_file() else None
        if actual != value["bytes"]:
            state = "is gone" if actual is None else f"has {actual} bytes instead of {value['bytes']}"
            raise DipgoError(f"{path / file} {state}; {entry.remedy}")
    return found


def _match(path: Path, patterns: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the files that match a pattern, sorted, and the patterns that no file matches."""
    matches = {pattern: [file for file in path.glob(pattern) if file.is_file()] for pattern in patterns}
    found = {file.relative_to(path).as_posix() for files in matches.values() for file in files}
    return sorted(found), [pattern for pattern, files in matches.items() if not files]


def _lock(entry: Asset) -> Mapping[str, Mapping[str, Any]]:
    """{file: {"sha256", "bytes"}} as it was when it was fetched; empty for a copy that a user has linked."""
    path = entry.path / LOCK
    if not path.is_file():
        return {}
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        return {file: {"sha256": value["sha256"], "bytes": value["bytes"]} for file, value in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DipgoError(f"{path} is broken; remove it, or {entry.remedy}") from error
