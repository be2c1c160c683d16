"""Compiles the blocks of a denoiser with torch.compile, each by itself and once, for all schedules.

The hooks of `gated` stay outside of the compiled blocks and decide which of them a call runs. So every schedule runs
the same compiled pieces as the dense run, and nothing compiles again for another call, schedule or run. Compiling the
whole gated denoiser would compile again for each call, because the gates of a call are part of what it depends on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from dipgo import Site, family_of

VARIANTS = 64
"""How many variants of one module class, by width and resolution, may be compiled."""


def regions(denoiser: nn.Module, sites: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the modules that are compiled, as dotted paths.

    They are the blocks of the family. A block with sites inside is compiled layer by layer, because a hook must sit
    around a compiled module and not in it.
    """
    family, modules = family_of(denoiser), [Site.parse(site).module for site in sites]
    found: list[str] = []
    for block in family.blocks(denoiser):
        cut = any(module.startswith(f"{block}.") for module in modules)
        found += family.layers(denoiser, block) if cut else [block]
    watched = {site.module for site in map(Site.parse, sites) if site.delta}  # `gated` hooks into their shortcuts
    shortcuts = [path for path in found if getattr(denoiser.get_submodule(path), "conv_shortcut", None) is not None]
    return tuple(path for path in found if path not in watched.intersection(shortcuts))


@contextmanager
def compiled(denoiser: nn.Module, sites: Sequence[str] = (), backend: str = "inductor") -> Iterator[None]:
    """Compile the blocks of a denoiser inside the context, where it may be gated at `sites`.

    A block compiles when it is first called. What is compiled is kept after the context and serves the next one.
    """
    modules = [denoiser.get_submodule(path) for path in regions(denoiser, sites)]
    for module in modules:
        module.forward = torch.compile(module.forward, dynamic=False, backend=backend)
    try:
        with torch._dynamo.config.patch(recompile_limit=VARIANTS):
            yield
    finally:
        for module in modules:
            del module.forward
