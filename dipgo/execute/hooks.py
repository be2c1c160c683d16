"""Hooks of diffusers on a denoiser's sites and on the denoiser itself, for as long as a context lasts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from diffusers.hooks import HookRegistry, ModelHook
from torch import nn

from dipgo.errors import DipgoError
from dipgo.graph import BlockGraph, Site, resolve

CALL_HOOK, SITE_HOOK = "dipgo call", "dipgo site"


@contextmanager
def hooked(denoiser: nn.Module, graph: BlockGraph, sites: Sequence[ModelHook], call: ModelHook) -> Iterator[None]:
    """One hook on each site's module and one on the denoiser, off again on leaving."""
    modules = [resolve(denoiser, Site.parse(site).module) for site in graph.sites]
    hooks = [(module, SITE_HOOK, hook) for module, hook in zip(modules, sites, strict=True)]
    hooks.append((denoiser, CALL_HOOK, call))  # last: outermost where the call is a site
    if CALL_HOOK in HookRegistry.check_if_exists_or_initialize(denoiser).hooks:
        raise DipgoError("this denoiser is gated already; leave the first context before entering another")
    for module, name, hook in hooks:
        HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, name)
    try:
        yield
    finally:
        for module, name, _ in reversed(hooks):
            _unhook(module, name)


def _unhook(module: nn.Module, name: str) -> None:
    """Remove our hook and, where it was the only one, all that diffusers put on the module for it."""
    registry = module._diffusers_hook
    registry.remove_hook(name, recurse=False)
    if not registry.hooks:
        del module._diffusers_hook
        if getattr(module.forward, "__func__", None) is type(module).forward:
            del module.forward  # it was set to what the class says anyway
