"""What preparations cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.prepare.forecasts import Learning
from benchmarks.prepare.training import Training


def training_cells(trained: Sequence[Training | Learning]) -> dict[str, dict[str, Any]]:
    """What training a pruner, learning a forecast, or one after the other cost: seconds, and bytes of resident
    memory."""
    return {
        "training_seconds": {"value": sum(each.seconds for each in trained)},
        "training_peak_memory": {"value": max(each.peak_memory for each in trained)},
    }
