"""Work that waits for other work, side by side in processes."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from threading import RLock, Thread
from typing import Any

import torch
from tqdm import tqdm

from dipgo.errors import DipgoError, NotWritten, first_line
from dipgo.interrupts import deaf

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A piece of work."""

    title: str
    call: Callable[[], tuple[Any, ...]]
    """Gives a function and its arguments, to be pickled. It is asked once all jobs in `needs` are done."""
    needs: tuple[Hashable, ...] = ()
    """The keys of the jobs that must be done first."""


@contextmanager
def failing(failed: dict[Hashable, DipgoError], key: Hashable, title: str) -> Iterator[None]:
    """Let what fails inside cost its own piece of work only: the reason goes into `failed` under `key`.

    A refusing disk (`NotWritten`), a worker that died and an interruption concern all work, so they pass through.
    """
    try:
        yield
    except (NotWritten, BrokenProcessPool):
        raise
    except DipgoError as error:
        failed[key] = error
    except Exception as error:
        log.debug("%s", title, exc_info=True)
        failed[key] = DipgoError(f"{title} failed: {type(error).__name__}: {first_line(error)}")


def run_jobs(jobs: Mapping[Hashable, Job], workers: int) -> dict[Hashable, DipgoError]:
    """Run all jobs, the first ready one first, and return the reasons of those that failed.

    jobs: the jobs by key. What `needs` names and `jobs` lacks counts as done.
    workers: how many processes work side by side; 1 is this one.

    A job that fails costs those that need it, and no other. A refusing disk (`NotWritten`) and a worker that died end
    the work with a `DipgoError`.
    """
    waiting, failed = dict(jobs), {}
    running: dict[Future, Hashable] = {}
    with processes(workers) as executor:
        while waiting or running:
            busy = {*waiting, *running.values()}
            for key, job in list(waiting.items()):
                reason = next((failed[need] for need in job.needs if need in failed), None)
                if reason is None and (len(running) == workers or not busy.isdisjoint(job.needs)):
                    continue
                del waiting[key]
                with failing(failed, key, job.title):
                    if reason is not None:
                        raise reason
                    running[submitted(executor, *job.call())] = key
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                key = running.pop(future)
                log.info("%d of %d: %s", len(jobs) - len(waiting) - len(running), len(jobs), jobs[key].title)
                with failing(failed, key, jobs[key].title):
                    future.result()
    return failed


@contextmanager
def processes(workers: int, start: str = "spawn") -> Iterator[Executor]:
    """Give an executor of so many processes that share the machine's threads, or of this process where there is one.
    Whatever ends the work early ends the processes as well. Submit to it by `submitted`.

    start: how `multiprocessing` starts them. A fork spares them the imports, but may hang once torch has threads here.
    """
    if workers == 1:
        yield _Here()
        return
    threads = max(1, torch.get_num_threads() // workers)
    context = multiprocessing.get_context(start)
    executor = ProcessPoolExecutor(workers, context, _begin, (threads,))
    try:
        yield executor
    except BrokenProcessPool:
        raise DipgoError(
            "a worker process died, perhaps for lack of memory; what is finished is kept: run again, where the command "
            "has them with --workers 1 or a smaller --batch"
        ) from None
    except BaseException:
        for worker in multiprocessing.active_children():
            worker.kill()  # what they write is renamed into place, so they may stop anywhere
        raise
    finally:
        executor.shutdown(cancel_futures=True)


def submitted(executor: Executor, function: Callable, *args: Any) -> Future:
    """Submit work. A worker that starts by it is deaf to Ctrl-C: this process hears it, and ends the workers."""
    with nullcontext() if isinstance(executor, _Here) else deaf():
        return executor.submit(function, *args)


def _begin(threads: int) -> None:
    """Prepare a worker."""
    torch.set_num_threads(threads)
    tqdm.set_lock(RLock())  # its usual lock is a semaphore that a killed worker would leave behind
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End a worker whose suite was killed, which tells it nothing."""
    multiprocessing.parent_process().join()
    os._exit(1)


class _Here(Executor):
    """Runs what is submitted at once, in this process."""

    def submit(self, function: Callable, /, *args: Any, **kwargs: Any) -> Future:
        future: Future = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future
