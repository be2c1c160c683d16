"""Named things of one kind. No torch."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Iterable, Mapping
from typing import TypeVar

from dipgo.errors import DipgoError, unknown

T = TypeVar("T")


class Registry(UserDict[str, T]):
    """The things of one kind by their names, in the order in which they were added.

    It is a dict with two differences: asking for an unknown name raises a `DipgoError` that proposes the nearest names,
    and so does adding a second thing under a name that is taken.
    """

    def __init__(self, kind: str, entries: Mapping[str, T] | Iterable[tuple[str, T]] = ()) -> None:
        """Start a registry.

        kind: what an entry is called in messages, such as "method".
        entries: the first entries. Pairs, unlike a dict, do not hide two entries of one name.
        """
        self.kind = kind
        super().__init__()
        for name, entry in entries.items() if isinstance(entries, Mapping) else entries:
            self[name] = entry

    def __setitem__(self, name: str, entry: T) -> None:
        if name in self.data and self.data[name] is not entry:
            raise DipgoError(f"there is a {self.kind} {name!r} already; give the new one another name")
        self.data[name] = entry

    def __getitem__(self, name: str) -> T:
        if name not in self:
            raise unknown(self.kind, name, self.data)
        return self.data[name]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self.data

    def get(self, name: str, default: T | None = None) -> T | None:
        """Return the entry of a name, or `default` where there is none."""
        return self.data[name] if name in self else default
