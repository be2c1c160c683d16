"""Which prompt sets methods may read. No torch."""

from __future__ import annotations

from dipgo.errors import DipgoError

FRESH = "fresh"
"""The prompt set for the published numbers alone: no model was trained on its captions, and no setting was ever tried
on them."""


def check_learnable(prompts: str) -> None:
    """Raise `DipgoError` where a search, a learning or a tuning asks for the captions of the fresh set."""
    if prompts == FRESH:
        raise DipgoError(f"the prompt set {FRESH!r} is kept for the published numbers; learn from another, as 'train'")
