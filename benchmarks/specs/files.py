"""Tables of TOML and JSON files, and what is made of them. No torch."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

from dipgo.errors import DipgoError, first_line, unknown
from dipgo.files import write_bytes, write_text

T = TypeVar("T")

__all__ = ["address", "construct", "merge", "read_toml", "write_bytes", "write_text"]


def construct(cls: type[T], data: Mapping[str, Any], what: str) -> T:
    """Return `cls(**data)` for a dataclass. Raises a `DipgoError` that begins with `what` for an unknown or a missing
    field."""
    known = {f.name: f for f in fields(cls)}
    for name in data:
        if name not in known:
            raise DipgoError(f"{what}: {unknown('field', name, known)}")
    for name, f in known.items():
        if name not in data and f.default is MISSING and f.default_factory is MISSING:
            raise DipgoError(f"{what}: field {name!r} is missing; add it")
    return cls(**data)


def address(identity: Mapping[str, Any], folder: Path) -> Path:
    """Return the path of the file in a folder whose name is a digest of `identity`, which holds plain JSON values."""
    return folder / f"{hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]}.json"


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `over` in place of its own, table by table."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def flat(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of nested tables in one table, whose keys are the dotted paths."""
    found = {}
    for key, value in fields.items():
        inner = flat(value) if isinstance(value, Mapping) else {"": value}
        found |= {f"{key}.{name}".rstrip("."): item for name, item in inner.items()}
    return found


def read_toml(path: Path | str) -> dict[str, Any]:
    """Return the tables of a TOML file. Raises a `DipgoError`, which names the file, where it is absent or no TOML."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DipgoError(f"{path}: no such file") from None
    except OSError as error:
        raise DipgoError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DipgoError(f"{path}: no text in UTF-8 ({error.reason} at byte {error.start})") from None
    except RecursionError:
        raise DipgoError(f"{path}: it is nested too deeply") from None
    except ValueError as error:  # a syntax error, or a number of thousands of digits
        raise DipgoError(f"{path}: {first_line(error)}") from error
