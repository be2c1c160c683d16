"""Sweeps: one table of a TOML file that stands for several, which differ in a few values. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from dipgo.errors import DipgoError, unknown

PLACEHOLDER = re.compile(r"\{(\w+)\}")


def expand(item: Mapping[str, Any], sweeps: Mapping[str, Any], where: str) -> Iterator[dict[str, Any]]:
    """Return the tables that `item` stands for: one for each position of the lists of the sweeps that it names in
    `over`.

    item: a table. `over` is the name of a sweep, or a list of names of sweeps that follow each other. Without `over`
        the item stands for itself.
    sweeps: the file's `[sweep.NAME]` tables. Each holds lists of one length, which are walked together, and may hold
        `defaults`, the fields that all items over it share. One without lists has one position.
    where: what an error names first, such as the file and the item.

    Texts may hold placeholders in the syntax of `str.format`: "plms-{calls}", "ours-{ratio:.2f}". A text that is one
    placeholder and nothing else, such as "{calls}", becomes the value itself, of whatever type. Raises `DipgoError`
    for an unknown sweep or placeholder, and for lists of different lengths.
    """
    names = item.get("over", [])
    fields = {key: value for key, value in item.items() if key != "over"}
    if not names:
        yield _fill(fields, {}, where)
    for name in [names] if isinstance(names, str) else names:
        if name not in sweeps:
            raise DipgoError(f"{where}: {unknown('sweep', name, sweeps)}")
        shared = sweeps[name].get("defaults", {})
        for values in _positions(sweeps[name], f"{where}: sweep {name!r}"):
            yield _fill({**shared, **fields}, values, f"{where} over {name!r}")


def _positions(sweep: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    lists = {key: value for key, value in sweep.items() if key != "defaults"}
    for key, value in lists.items():
        if not isinstance(value, list) or not value:
            raise DipgoError(f"{where}: {key} is {value!r}; it must be a list of values")
    sizes = {key: len(value) for key, value in lists.items()}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{key} has {size}" for key, size in sizes.items())
        raise DipgoError(f"{where} needs lists of one length; {told}")
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)] or [{}]


def _fill(value: Any, values: Mapping[str, Any], where: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _fill(item, values, f"{where}: {key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, values, where) for item in value]
    if not isinstance(value, str):
        return value
    try:
        whole = PLACEHOLDER.fullmatch(value)
        return values[whole[1]] if whole else value.format_map(values)
    except KeyError as error:
        known = values or ["none, as it is `over` no sweep"]
        raise DipgoError(f"{where}: {unknown('placeholder', error.args[0], known)}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise DipgoError(f"{where}: {value!r}: {error}") from None
