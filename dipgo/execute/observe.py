"""Shows what the sites of a denoiser give while it computes everything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from dipgo.execute.values import residuals, subtract
from dipgo.graph import BlockGraph, Site, resolve


@contextmanager
def observed(denoiser: nn.Module, graph: BlockGraph, see: Callable[[int, Any], None]) -> Iterator[None]:
    """Inside, each call of a site's module calls `see(index, value)` with the site's index and its new value: the
    module's output or, for a delta, what it adds to its streams."""

    def hook_of(index: int) -> Callable[..., None]:
        delta, streams = Site.parse(graph.sites[index]).delta, graph.streams[index]

        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
            see(index, subtract(output, residuals(module, streams, args, kwargs)) if delta else output)

        return hook

    modules = [resolve(denoiser, Site.parse(site).module) for site in graph.sites]
    handles = [m.register_forward_hook(hook_of(index), with_kwargs=True) for index, m in enumerate(modules)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
