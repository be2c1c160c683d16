"""Calls of a denoiser and of its sites go through hooks of ours, for as long as a context lasts.

A hook sits on a module's `__call__`, not on its `forward`. So it stays where others put hooks on `forward` and take
them off again (model offload does so after every picture), and it is outside of what torch.compile compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial, wraps
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from dipgo.errors import DipgoError
from dipgo.graph import BlockGraph, Site, resolve

Hook = Callable[..., Any]
"""Called as hook(module, forward, *args, **kwargs) in place of the module; `forward` is what it would have done."""

_HOOKS: WeakKeyDictionary[nn.Module, tuple[Hook, ...]] = WeakKeyDictionary()  # the innermost hook comes first


@contextmanager
def hooked(denoiser: nn.Module, graph: BlockGraph, sites: Sequence[Hook], call: Hook) -> Iterator[None]:
    """Put one hook on each site's module and one on the denoiser, and take them off on leaving.

    Raises `DipgoError` where one of the modules has a hook already, or where the denoiser lacks a site.
    """
    # The call's hook comes last, so that it is the outer one where the call itself is a site.
    hooks = [(resolve(denoiser, Site.parse(site).module), hook) for site, hook in zip(graph.sites, sites, strict=True)]
    hooks.append((denoiser, call))
    if any(module in _HOOKS for module, _ in hooks):
        raise DipgoError("this denoiser is gated already; leave the first context before entering another")
    try:
        for module, hook in hooks:
            if module not in _HOOKS:
                module.__class__ = _hookable(type(module))
            _HOOKS[module] = (*_HOOKS.get(module, ()), hook)
        yield
    finally:
        for module, _ in hooks:
            if _HOOKS.pop(module, None):
                module.__class__ = type(module).__base__


@contextmanager
def around(module: nn.Module, hook: Hook) -> Iterator[None]:
    """Put one more hook on a module, outside of all that are there, and take it off on leaving.

    Contexts of `hooked` and of this one are left in the opposite order of their entering.
    """
    if module not in _HOOKS:
        module.__class__ = _hookable(type(module))
    before = _HOOKS.get(module, ())
    _HOOKS[module] = (*before, hook)
    try:
        yield
    finally:
        if before:
            _HOOKS[module] = before
        else:
            del _HOOKS[module]
            module.__class__ = type(module).__base__


@cache
def _hookable(kind: type[nn.Module]) -> type[nn.Module]:
    """Return a class that is `kind` in all but its calls, which go through the module's hooks.

    Copies and pickles of its modules are of `kind` itself and have no hooks.
    """

    def call(self: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
        if self not in _HOOKS:  # torch.nn.DataParallel makes such replicas
            raise DipgoError(f"this {kind.__name__} is a replica of a gated module; use one GPU, or a deepcopy on each")
        forward = partial(kind.__call__, self)
        for hook in _HOOKS[self]:
            forward = partial(hook, self, forward)
        return forward(*args, **kwargs)

    def reduce(self: nn.Module, protocol: int) -> tuple:
        state = object.__reduce_ex__(self, max(2, protocol))[2:]
        return (kind.__new__, (kind,), *state)

    names = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(kind.__name__, (kind,), {**names, "__call__": call, "__reduce_ex__": reduce})


class _Reentrant(AbstractContextManager):
    """A context that can be entered again once it was left; to enter it twice at a time is for `make` to refuse."""

    def __init__(self, make: Callable[[], AbstractContextManager]) -> None:
        self.make = make

    def __enter__(self) -> Any:
        context = self.make()
        value = context.__enter__()
        self.context = context
        return value

    def __exit__(self, *error: Any) -> bool | None:
        return self.context.__exit__(*error)


def reentrant(function: Callable[..., Iterator[Any]]) -> Callable[..., AbstractContextManager]:
    """Return `contextlib.contextmanager` of a function, but the context that it gives can be entered again."""
    make = contextmanager(function)

    @wraps(function)
    def made(*args: Any, **kwargs: Any) -> AbstractContextManager:
        return _Reentrant(partial(make, *args, **kwargs))

    return made
