"""What really ran: the gating's log of one full trajectory. No torch."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Outcome(IntEnum):
    """What happened at a site in a call."""

    COMPUTED = 0
    REUSED = 1
    DEAD = 2


class Trace:
    """What really ran in the last full trajectory.

    `outcomes` is int8 [calls, sites] of `Outcome`; `ran` is bool [calls], true where the denoiser's forward
    was entered at all.
    """

    def __init__(self, sites: tuple[str, ...], calls: int) -> None:
        self.sites = sites
        self.outcomes = np.full((calls, len(sites)), Outcome.DEAD, dtype=np.int8)
        self.ran = np.zeros(calls, dtype=bool)
