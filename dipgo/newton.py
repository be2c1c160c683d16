"""Gauss-Newton steps on the error of pictures, for what has few unknowns: no gradient runs through the denoiser."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

DAMPING = (1e-3, 1e-2, 1e-1, 1.0)  # Levenberg's damping relative to the diagonal; the best of these is taken
FLAT = 0.01  # the share of the mean diagonal that is added to the diagonal for the damping
FLOOR = 1e-6  # a picture's mean squared error below which no other counts as better


def log_loss(error: torch.Tensor) -> float:
    """Return the mean over pictures of the log of their mean squared error; error [n, numbers of a picture]."""
    return (error.square().mean(1) + FLOOR).log().mean().item()


def damped_steps(error: torch.Tensor, slopes: torch.Tensor) -> Iterator[np.ndarray]:
    """Yield what to add to the unknowns, float [p], once for each damping.

    error: the error now, [n, numbers of a picture].
    slopes: its derivatives by the unknowns, [p, n, numbers of a picture].
    """
    weighed = slopes / (error.square().mean(1, keepdim=True) + FLOOR)  # the log's derivative: pictures count alike
    products = torch.einsum("pnd,qnd->pq", weighed, slopes).cpu().numpy()
    pull = torch.einsum("pnd,nd->p", weighed, error).cpu().numpy()
    for damping in DAMPING:
        # An unknown may have no effect at all, hence the part of the mean.
        damped = products + damping * np.diag(products.diagonal() + FLAT * products.diagonal().mean())
        yield -np.linalg.solve(damped, pull)
