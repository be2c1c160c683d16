"""Work that waits for other work, side by side in processes."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from threading import Thread
from typing import Any

import torch

from dipgo import DipgoError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """`call` gives a function and its arguments, to be pickled; it is asked once all jobs in `needs` are done."""

    title: str
    call: Callable[[], tuple[Any, ...]]
    needs: tuple[Hashable, ...] = ()


def run_jobs(jobs: Mapping[Hashable, Job], workers: int) -> dict[Hashable, DipgoError]:
    """Run all jobs, the first ready one first. What `needs` names and `jobs` lacks counts as done.

    A `DipgoError` fails a job and all that need it, and nothing else: they come back with it. Any other error ends
    the work, once the jobs that are running have ended.
    """
    waiting, failed = dict(jobs), {}
    running: dict[Future, Hashable] = {}
    with _executor(workers) as executor:
        while waiting or running:
            busy = {*waiting, *running.values()}
            for key, job in list(waiting.items()):
                reason = next((failed[need] for need in job.needs if need in failed), None)
                if reason is None and (len(running) == workers or not busy.isdisjoint(job.needs)):
                    continue
                del waiting[key]
                try:
                    if reason is not None:
                        raise reason
                    running[executor.submit(*job.call())] = key
                except DipgoError as error:
                    failed[key] = error
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                key = running.pop(future)
                log.info("%d of %d: %s", len(jobs) - len(waiting) - len(running), len(jobs), jobs[key].title)
                try:
                    future.result()
                except DipgoError as error:
                    failed[key] = error
                except BrokenProcessPool:
                    raise DipgoError(
                        "a worker process died, perhaps for lack of memory; run again with --workers 1 or a smaller "
                        "--batch: what is finished is kept"
                    ) from None
    return failed


def _executor(workers: int) -> Executor:
    """Processes that share the machine's threads; this process where there is one."""
    if workers == 1:
        return _Here()
    threads = max(1, torch.get_num_threads() // workers)
    context = multiprocessing.get_context("spawn")  # a fork of a process with torch's threads may hang
    return ProcessPoolExecutor(workers, context, _begin, (threads,))


def _begin(threads: int) -> None:
    """What a worker does first."""
    torch.set_num_threads(threads)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed suite tells its workers nothing. What they write is renamed into place, so they may stop anywhere."""
    multiprocessing.parent_process().join()
    os._exit(1)


class _Here(Executor):
    def submit(self, function: Callable, /, *args: Any, **kwargs: Any) -> Future:
        future: Future = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future
