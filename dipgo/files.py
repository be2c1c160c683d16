"""Small files, written whole or not at all and read strictly. No torch."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dipgo.errors import DipgoError, NotWritten, first_line


def write_text(path: Path | str, text: str, *, sync: bool = True) -> None:
    """Write a text in UTF-8 as `write_bytes` does."""
    try:
        content = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DipgoError(f"{path}: not written: the text holds half a character ({error.reason})") from None
    write_bytes(path, content, sync=sync)


def write_bytes(path: Path | str, content: bytes, *, sync: bool = True) -> None:
    """Write `path` whole or not at all, with the permissions that the process's umask leaves.

    path: a file; missing folders above it are made, and a link is followed.
    content: the bytes of the whole file.
    sync: wait until the disk has them, so that a power cut cannot lose them. It costs too much for many small files
        that can be made again.

    Raises `NotWritten` when the disk refuses; the old file is then as it was.
    """
    path = Path(os.path.realpath(path))
    try:
        if path.exists() and not path.is_file():  # a pipe or a terminal holds no old content to keep
            path.write_bytes(content)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{secrets.token_hex(8)}.part")
        try:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise NotWritten(f"{path}: not written, nothing left behind: {error.strerror or error}") from error


def read_json(path: Path | str, what: str = "JSON") -> Any:
    """Read a JSON file strictly.

    path: a file in UTF-8.
    what: what the file should hold, for the error's text.

    Raises `DipgoError` that names the file when it is absent, no text, cut short, or holds what JSON has no room for
    (NaN, a key twice) or what cannot be read back (half a character, a number or a nesting without end).
    """
    try:
        return parse_json(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DipgoError(f"{path}: {error.strerror or error}; give a file that holds {what}") from None
    except UnicodeDecodeError as error:
        raise DipgoError(f"{path}: not {what}: no text in UTF-8 ({error.reason} at byte {error.start})") from None
    except DipgoError as error:
        raise DipgoError(f"{path}: not {what}: {error}") from None


def parse_json(text: str) -> Any:
    """Parse a JSON text strictly; see `read_json`. Raises `DipgoError` without a file's name."""
    try:
        data = json.loads(text, object_pairs_hook=_once, parse_constant=_refuse, parse_float=_finite)
        if "\\u" in text:  # only an escape can write half of a character
            json.dumps(data, ensure_ascii=False).encode("utf-8")
    except DipgoError:
        raise
    except RecursionError:
        raise DipgoError("it is nested too deeply") from None
    except UnicodeEncodeError:
        raise DipgoError("a text in it holds half a character (a lone surrogate)") from None
    except ValueError as error:  # a syntax error, or a number of thousands of digits
        raise DipgoError(first_line(error)) from None
    return data


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        twice = next(key for place, (key, _) in enumerate(pairs) if key in dict(pairs[:place]))
        raise DipgoError(f"the key {twice!r} comes twice")
    return data


def _refuse(constant: str) -> None:
    raise DipgoError(f"{constant} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise DipgoError(f"{text[:40]} is beyond the range of numbers")
    return value
