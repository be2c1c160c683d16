"""A recipe for another number of steps: forecasts are functions of time, so that their coefficients can be read off."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from dipgo.errors import DipgoError
from dipgo.schedule import Schedule


def retimed(recipe: Any, steps: int) -> Any:
    """Return a recipe that computes as many calls in a run of another number of steps.

    The computed calls are those nearest in time to the old ones; each reused call takes its coefficients from the same
    part of its gap. The recipe's only quality is a note of where it came from and of what it was worth there, until it
    is measured (`dipgo.measured`).

    recipe: a `dipgo.Recipe`.
    steps: the pipeline's `num_inference_steps`.

    Raises `DipgoError` where a step count alone does not set the scheduler's timesteps, where whole calls are not the
    only site, or where there are too few steps.
    """
    schedule = recipe.schedule
    if len(schedule.sites) != 1 or schedule.sites[0]:
        raise DipgoError("only recipes that reuse whole calls carry over to other steps; learn one for these steps")
    times, grid = _timesteps(recipe, steps)
    old, computed = schedule.timesteps, np.flatnonzero(~schedule.reuse[:, 0])
    new = sorted({0, *(int(np.abs(times - old[call]).argmin()) for call in computed[1:])})
    if len(new) < len(computed) or len(new) >= len(times):
        raise DipgoError(f"{steps} steps are too few to compute {len(computed)} calls of; ask for more, or learn again")
    reuse = np.ones((len(times), 1), dtype=bool)
    reuse[new] = False
    given = schedule.coefficients
    held = np.zeros((*schedule.reuse.shape, 1)) if given is None else np.array(given, dtype=float)
    held[computed, :, 0] = 1  # a computed call gives its newest value
    if given is None:
        held[:, :, 0] = 1
    coefficients = np.zeros((len(times), *held.shape[1:]))
    for place, start in enumerate(new):
        end = new[place + 1] if place + 1 < len(new) else len(times)
        before = computed[place], computed[place + 1] if place + 1 < len(computed) else schedule.calls
        at = np.interp(
            np.arange(start, end), (start, max(start + 1, end - 1)), (before[0], max(before[0], before[1] - 1))
        )
        low = np.floor(at).astype(int)
        share = (at - low).reshape(-1, *[1] * (held.ndim - 1))
        coefficients[start:end] = (1 - share) * held[low] + share * held[np.minimum(low + 1, before[1] - 1)]
    source = {"from_calls": schedule.calls, "from_recipe": recipe.digest}
    source |= {"psnr": recipe.quality["psnr"]} if "psnr" in recipe.quality else {}
    macs = {}
    for name, (dense, spent) in recipe.macs.items():
        macs[name] = (dense / schedule.calls * len(times), spent / len(computed) * len(new))
    provenance = dict(recipe.provenance)
    settings = dict(provenance.get("settings", {}))
    if "arguments" in settings:
        settings["arguments"] = {**settings["arguments"], "num_inference_steps": steps}
        provenance["settings"] = settings
    return replace(
        recipe,
        schedule=Schedule(schedule.sites, reuse, coefficients, times),
        form=replace(recipe.form, grid=grid),
        macs=macs,
        quality={"retimed": source},
        provenance=provenance,
    )


def _timesteps(recipe: Any, steps: int) -> tuple[np.ndarray, tuple[float, ...]]:
    """Return the timestep of each call at that step count, and the scheduler's list. Raises `DipgoError` where the
    scheduler, set by a step count alone, does not give the recipe's own list either."""
    import diffusers

    target, old = recipe.target, recipe.form.grid
    kind = getattr(diffusers, target.scheduler, None)
    known = recipe.provenance.get("settings", {}).get("arguments", {}).get("num_inference_steps")
    if kind is None or not isinstance(known, int) or len(recipe.schedule.timesteps) != len(old):
        raise DipgoError(
            f"{target.scheduler or 'this pipeline'} cannot be set to other steps here; learn a recipe for them"
        )
    lists = []
    for count in (known, steps):
        scheduler = kind.from_config(dict(target.scheduler_config))
        try:
            scheduler.set_timesteps(count)
        except Exception as error:  # schedulers refuse in many ways
            raise DipgoError(f"{target.scheduler} cannot be set to {count} steps: {error}") from None
        lists.append(tuple(float(each) for each in scheduler.timesteps))
    own = recipe.schedule.timesteps
    if len(lists[0]) != len(old) or not np.allclose(lists[0], own, rtol=1e-4, atol=1e-3):
        raise DipgoError(
            f"the recipe's timesteps are not those of {known} steps of {target.scheduler} alone (by strength, shift or "
            "size); learn a recipe for these steps"
        )
    return np.array(lists[1]), lists[1]
