"""The two terms of Eq. 3: consistency of decoded images, and gamma-weighted sparsity."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pytorch_msssim import ssim
from torch.nn import functional

from dipgo.registry import Registry

Consistency = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _ssim(images: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    return 1 - ssim(images, references, data_range=1.0)


def _l1_ssim(images: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    return functional.l1_loss(images, references) + _ssim(images, references)


CONSISTENCIES: Registry[Consistency] = Registry(
    "consistency loss",
    {"ssim": _ssim, "l1": functional.l1_loss, "l2": functional.mse_loss, "l1+ssim": _l1_ssim},
)


def consistency(name: str) -> Consistency:
    """Return f of Eq. 3 (ablated in Table 5): from two batches of images [n, 3, h, w] in [0, 1] to a scalar, which is 0
    where they are equal."""
    return CONSISTENCIES[name]


def sparsity(reuse: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    """Return the weighted share of kept gates, from 1 (all computed) to 0 (all reused).

    `reuse` [calls, sites] in [0, 1]; `gamma` [sites]. Eq. 3's sum is divided by the sum of gamma instead of
    N x T: the paper states that training starts at 1, which its formula gives only for gamma = 1.
    """
    return ((1 - reuse) * gamma).sum() / (gamma.sum() * len(reuse))
