"""Where the results of preparations lie, and how they come there: each is made by one process at a time, and whole."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from tqdm import tqdm

from baselines import method
from baselines.plan import PlanContext
from baselines.preparation import Lesson, Preparation
from benchmarks.machine.provenance import memory_meter
from benchmarks.specs.files import address, write_bytes, write_text
from benchmarks.specs.run import RunSpec
from dipgo.errors import DipgoError
from dipgo.state import State

log = logging.getLogger(__name__)

KEEP_EVERY = 30.0  # seconds of a lesson that a kill may cost


def preparations(spec: RunSpec, workspace: Path) -> dict[Path, Preparation]:
    """Return what a run's method makes beforehand, by the files that hold it; first what the others need."""
    prepares = method(spec.method).prepares(spec.params)
    return {path_of(spec, preparation, workspace): preparation for preparation in prepares}


def path_of(spec: RunSpec, preparation: Preparation, workspace: Path) -> Path:
    """Return the file that holds a run's preparation. It depends on the run's setting, on the preparation's identity
    and on what it needs."""
    needs = {name: path_of(spec, need, workspace).stem for name, need in preparation.needs.items()}
    identity = {"setting": spec.setting._asdict(), "needs": needs, "settings": preparation.identity()}
    return address(identity, workspace / preparation.folder)


def read(path: Path) -> dict[str, Any]:
    """Return what a file holds of a preparation. Raises `DipgoError` for a broken file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DipgoError(f"{path}: not a whole result ({error}); delete it, and it is made again") from error


def finished(path: Path) -> bool:
    """Tell whether a preparation is through. A file is, unless it says otherwise as an unfinished search's does."""
    return path.exists() and read(path).get("finished", True)


def forget(path: Path) -> None:
    """Delete what is kept of a preparation."""
    for kept in (path, _state_path(path)):
        kept.unlink(missing_ok=True)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Let no other process make this preparation meanwhile, or wait until it has; a killed process holds nothing."""
    lock = FileLock(path.parent.parent / f"{path.stem}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        log.info("another process is making %s; waiting for it", path.relative_to(path.parent.parent))
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def taught(lesson: Lesson, context: PlanContext, spec: RunSpec, path: Path) -> Mapping[str, Any]:
    """Return the result of a run's lesson with its seconds and its most resident memory in bytes: read from `path` or,
    where that is missing, learned now and written there.

    Meanwhile what it takes to go on is kept beside `path`, so that a kill costs `KEEP_EVERY` seconds at most.
    """
    with held(path):
        if path.exists():
            return read(path)
        state, past = _read_state(_state_path(path))
        start = last = perf_counter()
        title, course, step = f"{lesson.title}, {spec.id}", past["log"][:-1], None
        with memory_meter() as peak:

            def cost() -> dict[str, float]:
                seconds = past["seconds"] + perf_counter() - start
                return {"seconds": seconds, "peak_memory": max(past["peak_memory"], peak())}

            with tqdm(total=lesson.total, initial=len(course), desc=title, unit="step") as progress:
                for step in lesson.steps(context, state):
                    course.append(dict(step.shown))
                    progress.update()
                    progress.set_postfix({name: f"{value:.4f}" for name, value in step.shown.items()})
                    if perf_counter() - last > KEEP_EVERY and len(course) < lesson.total:
                        _write_state(_state_path(path), step.state(), {"log": course, **cost()})
                        last = perf_counter()
            if step is None:
                raise DipgoError(f"{title}: it has no steps; ask for at least 1")
            result = {**step.result(course), **cost()}
        write_text(path, json.dumps({"model": spec.model, "settings": lesson.identity(), **result}) + "\n")
        _state_path(path).unlink(missing_ok=True)
        return result


def _state_path(path: Path) -> Path:
    return path.with_suffix(".state")


def _write_state(path: Path, state: State, past: Mapping[str, Any]) -> None:
    write_bytes(path, save(dict(state.tensors), {"data": json.dumps(dict(state.data)), "past": json.dumps(past)}))


def _read_state(path: Path) -> tuple[State | None, dict[str, Any]]:
    """Return the state that is kept with its log, seconds and peak of memory; None where none is kept."""
    if not path.exists():
        return None, {"log": [], "seconds": 0.0, "peak_memory": 0}
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            state = State({name: file.get_tensor(name) for name in file.keys()}, json.loads(metadata["data"]))
            return state, json.loads(metadata["past"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DipgoError(f"{path}: not a whole state ({error}); delete it, and the work begins anew") from error
