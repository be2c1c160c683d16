"""Reads and writes the small files that everything else consists of. No torch."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

from dipgo.errors import DipgoError, unknown

T = TypeVar("T")


def construct(cls: type[T], data: Mapping[str, Any], what: str) -> T:
    """`cls(**data)` for a dataclass; a `DipgoError` names an unknown or missing field of `what`."""
    known = {f.name: f for f in fields(cls)}
    for name in data:
        if name not in known:
            raise DipgoError(f"{what}: {unknown('field', name, known)}")
    for name, f in known.items():
        if name not in data and f.default is MISSING and f.default_factory is MISSING:
            raise DipgoError(f"{what}: field {name!r} is missing; add it")
    return cls(**data)


def address(identity: Mapping[str, Any], folder: Path) -> Path:
    """The file in a folder that belongs to what these plain JSON values identify."""
    return folder / f"{hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]}.json"


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `over` on top, table by table."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def flat(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The values of nested tables in one table, whose keys are the dotted paths."""
    found = {}
    for key, value in fields.items():
        inner = flat(value) if isinstance(value, Mapping) else {"": value}
        found |= {f"{key}.{name}".rstrip("."): item for name, item in inner.items()}
    return found


def read_toml(path: Path | str) -> dict[str, Any]:
    """The file's tables; a `DipgoError` names the file when it is absent or no TOML."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DipgoError(f"{path}: no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DipgoError(f"{path}: {error}") from error


def write_text(path: Path, text: str, *, sync: bool = True) -> None:
    """`write_bytes` of a text in UTF-8."""
    write_bytes(path, text.encode("utf-8"), sync=sync)


def write_bytes(path: Path, content: bytes, *, sync: bool = True) -> None:
    """Writes `path` whole or not at all; a `DipgoError` of one line when the disk refuses. `sync` outlasts a
    power cut, and costs too much for many small files that can be made again."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's files are private
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        why = error.strerror or error
        raise DipgoError(f"{path}: not written, nothing left behind: {why}") from error
    finally:
        if temporary is not None:
            os.unlink(temporary)
