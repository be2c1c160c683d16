"""The pytest fixture `dipgo_drift`, which comes with the package. No torch until it is used."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def dipgo_drift(request: pytest.FixtureRequest) -> Callable[..., dict[str, Any]]:
    """Return `dipgo.drift` with a folder beside the test, "drift/<the test's name>", as `drift(pipe, prompts, ...)`."""
    from dipgo.recipes.drift import drift

    place = Path(request.path).parent / "drift" / request.node.name
    return partial(drift, folder=place)
