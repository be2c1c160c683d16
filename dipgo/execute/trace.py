"""What really ran: a log of one sampler run. No torch."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Outcome(IntEnum):
    """What happened at a site in a call."""

    COMPUTED = 0
    REUSED = 1
    DEAD = 2


class Trace:
    """What really ran in the sampler run that is under way, or in the last one. Calls that did not come are all dead.

    `outcomes` is int8 [calls, sites], each an `Outcome`. `ran` is bool [calls], true where the denoiser's forward was
    entered at all.
    """

    def __init__(self, sites: tuple[str, ...], calls: int) -> None:
        self.sites = sites
        self.outcomes = np.full((calls, len(sites)), Outcome.DEAD, dtype=np.int8)
        self.ran = np.zeros(calls, dtype=bool)

    def clear(self) -> None:
        """Forget the last run, since another begins."""
        self.outcomes[:] = Outcome.DEAD
        self.ran[:] = False
