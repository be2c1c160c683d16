"""Ctrl-C ends a command in one line. No torch."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

INTERRUPTED = 130
"""The exit status that shells expect after Ctrl-C."""


def run_and_exit(main: Callable[[], int], says: str) -> NoReturn:
    """Run a command and exit with its status; after Ctrl-C with one line and `INTERRUPTED`.

    main: the command; what it has begun is undone on its way out of `KeyboardInterrupt`.
    says: what the line says after "interrupted; ": what is kept, and the way on.
    """
    try:
        status = main()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the exit itself is not interrupted
        print(f"interrupted; {says}", file=sys.stderr)
        sys.stdout.flush()
        logging.disable()  # what libraries log on their way out would follow the line
        atexit._run_exitfuncs()  # they release semaphores; to take torch down as well would take seconds
        os._exit(INTERRUPTED)
    sys.exit(status)


@contextmanager
def deaf() -> Iterator[None]:
    """Let processes that are started inside be born deaf to Ctrl-C, which a terminal sends to all of its processes.

    The one that started them hears it once it has left, and ends them.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
