"""Which calls to compute, and how to combine their outputs into the others: fitted to recorded runs. No torch.

A reused call gives a combination of the last K computed outputs, for each guidance branch. Its coefficients are fitted
one call ahead by least squares, so that the prediction is what the dense run's was. Between two computed calls a
sampler adds up its predictions. So where a run by earlier coefficients has been recorded, the fit also makes up for how
far the latents have strayed before: a gap's predictions are to bring them back to the dense run's at its end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

RIDGE = 1e-5  # relative to the outputs' mean square; neighbouring outputs are nearly alike
POWERS = (1.0, 0.85, 1.2)  # above 1 the computed calls are denser at the beginning
TINY = 1e-6
CANCELLING = 0.1  # a gap whose weights nearly cancel each other cannot bring anything back


def spacings(count: int, calls: int) -> Iterator[list[int]]:
    """Yield sets of `count` computed calls from the first one on: evenly spread, and denser at either end. The last gap
    is half as long, because nothing mends what goes wrong in it."""
    last = min(calls - 1, calls - calls / (2 * count))
    for power in POWERS:
        spread = (last * (np.arange(count) / max(1, count - 1)) ** power).round().astype(int)
        for place in range(1, count):
            spread[place] = max(spread[place], spread[place - 1] + 1)
        yield np.minimum(spread, calls - count + np.arange(count)).tolist()


def fit(dense: Sequence, own: Sequence, computed: Sequence[int], memory: int) -> np.ndarray:
    """Return the coefficients [calls, 1 site, K, branches] of runs that compute the calls in `computed`.

    dense: the dense runs (`dipgo.recipes.record.Recorded`), one for each picture.
    own: runs of the same pictures that computed these calls, by earlier coefficients. At first the dense ones.
    memory: K.
    """
    calls, branches = dense[0].guidance.shape
    found = np.zeros((calls, 1, memory, branches))
    found[:, :, 0] = 1
    aims, given = [_guided(run) for run in dense], [_guided(run) for run in own]
    strayed = [np.zeros(aim.shape[1]) for aim in aims]
    for place, start in enumerate(computed):
        end = computed[place + 1] if place + 1 < len(computed) else calls
        last = computed[max(0, place + 1 - memory) : place + 1][::-1]
        weights = dense[0].moved[start:end]
        for aim, now, far in zip(aims, given, strayed, strict=True):
            far += weights[0] * (now[start] - aim[start])
        reach = weights[1:].sum()
        if abs(reach) > CANCELLING * np.abs(weights[1:]).sum():
            back = [far / reach for far in strayed]
        else:
            back = [0 * far for far in strayed]
        found[start + 1 : end, 0, : len(last)] = _solve(dense, own, last, range(start + 1, end), (aims, back))
        for aim, now, far in zip(aims, given, strayed, strict=True):
            far += weights[1:] @ (now[start + 1 : end] - aim[start + 1 : end])
    return found


def _solve(dense: Sequence, own: Sequence, last: Sequence[int], reused: range, wanted: tuple) -> np.ndarray:
    """Return coefficients [reused calls, values, branches] that give what is wanted: the dense run's predictions, less
    what is to be brought back. The ridge draws them towards holding the last value."""
    calls, branches = list(reused), dense[0].branches
    square, across = 0.0, 0.0
    for run, aim, back in zip(own, *wanted, strict=True):
        basis = _branchwise(run)[list(last)].reshape(len(last) * branches, -1)
        square = square + basis @ basis.T
        across = across + basis @ (aim[calls] - back).T
    ridge = RIDGE * np.trace(square) / len(square) + np.finfo(float).tiny
    towards = np.zeros((len(square), 1))
    towards[:branches] = ridge
    solved = np.linalg.solve(square + ridge * np.eye(len(square)), across + towards)
    solved = solved.T.reshape(len(calls), len(last), branches)
    # They count for outputs that are weighed by guidance, which may change from call to call.
    here, there = dense[0].guidance[calls][:, None], dense[0].guidance[list(last)][None]
    hold = (np.arange(len(last)) == 0).astype(float)[None, :, None]
    return np.where(np.abs(here) > TINY, solved * there / np.where(np.abs(here) > TINY, here, 1.0), hold)


def _branchwise(run) -> np.ndarray:
    """Return a run's outputs [calls, branches, positions], each times its branch's part in the prediction."""
    return run.outputs * run.guidance[..., None]


def _guided(run) -> np.ndarray:
    """Return a run's predictions [calls, positions]."""
    return _branchwise(run).sum(axis=1)
