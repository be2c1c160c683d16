"""Parameters of methods, read strictly: a dataclass says their names, kinds and defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from dipgo.errors import DipgoError, unknown

T = TypeVar("T")
KINDS = {int: "an integer", float: "a finite number", str: "a string", bool: "true or false", Mapping: "a table"}


def read(cls: type[T], given: Mapping[str, Any], what: str) -> T:
    """Return `cls(**given)`, with nested tables read as the dataclasses that the fields' annotations name.

    cls: a dataclass whose fields are of the kinds in `KINDS`, dataclasses, or any of these or None.
    given: plain JSON values, as a run's params hold them.
    what: whose parameters these are, such as "deepcache" or "dipgo.train".

    Raises `DipgoError` that names a parameter that is unknown, missing or of another kind.
    """
    if not isinstance(given, Mapping):
        raise DipgoError(f"{what} is {given!r}; it must be a table")
    known = {field.name: field for field in fields(cls)}
    for name in given:
        if name not in known:
            raise DipgoError(f"{what}: {unknown('parameter', name, known)}")
    for name, field in known.items():
        if name not in given and field.default is MISSING and field.default_factory is MISSING:
            raise DipgoError(f"{what} needs the parameter {name!r}; set it in the run's params")
    hints = get_type_hints(cls)
    return cls(**{name: _value(hints[name], value, f"{what}.{name}") for name, value in given.items()})


def _value(hint: Any, value: Any, what: str) -> Any:
    kinds = [get_origin(kind) or kind for kind in get_args(hint) or (hint,)] if get_origin(hint) is not Mapping else []
    kind = next((kind for kind in kinds if kind is not NoneType), Mapping)
    if value is None and NoneType in kinds:
        return None
    if is_dataclass(kind):
        return read(kind, value, what)
    number = type(value) in (int, float) and math.isfinite(value)
    if not (number if kind is float else isinstance(value, Mapping) if kind is Mapping else type(value) is kind):
        raise DipgoError(f"{what} is {value!r}; it must be {KINDS[kind]}")
    return value
