"""torch.compile under `gated`: every block compiles by itself and once, whatever schedules make of it.

The hooks stay outside, in Python, and decide by call and block what runs. So all sets of live blocks are made of the
same compiled pieces as the dense run, and nothing compiles again for another call, another schedule or another run.
Around the whole gated denoiser it would: each call's gates are other Python state, on which a compiled graph depends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from dipgo import Site, family_of

VARIANTS = 64  # of one module class: as many kinds of blocks, by width and resolution, may be compiled of it


def regions(denoiser: nn.Module, sites: Sequence[str] = ()) -> tuple[str, ...]:
    """The modules that are compiled, as dotted paths: the family's blocks; of a block inside which there are `sites`,
    its layers. A hook sits around a compiled module, never in it."""
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
    """`denoiser` with its blocks compiled, to be gated at `sites` inside the context or not at all. A block compiles
    when it is first called; what is compiled outlasts the context and serves the next one."""
    modules = [denoiser.get_submodule(path) for path in regions(denoiser, sites)]
    for module in modules:
        module.forward = torch.compile(module.forward, dynamic=False, backend=backend)
    try:
        with torch._dynamo.config.patch(recompile_limit=VARIANTS):
            yield
    finally:
        for module in modules:
            del module.forward
