"""The pruner network (3.3, Fig. 2): a query and a prediction head for every (call, block), and one encoder."""

from __future__ import annotations

import torch
from torch import nn

from dipgo.errors import unknown

ENCODERS = ("linear", "attention", "none")
HEAD_WIDTH = 64  # the width of the one hidden layer in each head; the paper gives none
HEADS = 8


class Pruner(nn.Module):
    """Importance scores for every block in every call but the first, which is always computed."""

    def __init__(self, calls: int, sites: int, *, width: int = 512, encoder: str = "linear", keep: float = 0.6):
        """Start from the dense run: the last layers' weights are zero, and their bias favours keeping.

        calls, sites: how many denoiser calls and blocks there are.
        width: the width D of the queries.
        encoder: one layer, "linear" (two stacked linear layers), "attention" (self-attention and linear layers) or
            "none" (left out, for an ablation).
        keep: the score in (0.5, 1) at which every block starts.
        """
        super().__init__()
        if encoder not in ENCODERS:
            raise unknown("encoder", encoder, ENCODERS)
        self.calls, self.sites = calls, sites
        count = (calls - 1) * sites
        self.queries = nn.Parameter(torch.randn(count, width))
        if encoder == "linear":
            self.encoder: nn.Module = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        elif encoder == "attention":
            self.encoder = nn.TransformerEncoderLayer(width, HEADS, 2 * width, dropout=0.0, batch_first=True)
        else:
            self.encoder = nn.Identity()
        bound = width**-0.5
        self.hidden = nn.Parameter(torch.empty(count, width, HEAD_WIDTH).uniform_(-bound, bound))
        self.hidden_bias = nn.Parameter(torch.zeros(count, HEAD_WIDTH))
        self.last = nn.Parameter(torch.zeros(count, HEAD_WIDTH, 2))
        odds = torch.tensor([0.0, torch.logit(torch.tensor(keep)).item()])
        self.last_bias = nn.Parameter(odds.repeat(count, 1))

    def forward(self) -> torch.Tensor:
        """Return logits [calls - 1, sites, 2]; the last axis is (reuse, keep)."""
        encoded = self.encoder(self.queries.unsqueeze(0)).squeeze(0)
        hidden = torch.relu(torch.einsum("qd,qdh->qh", encoded, self.hidden) + self.hidden_bias)
        logits = torch.einsum("qh,qho->qo", hidden, self.last) + self.last_bias
        return logits.view(self.calls - 1, self.sites, 2)

    def scores(self) -> torch.Tensor:
        """Return the importance s in [0, 1], float [calls, sites]; the first row is 1."""
        keep = self.forward().softmax(-1)[..., 1]
        return torch.cat([keep.new_ones(1, self.sites), keep])


def straight_through(scores: torch.Tensor) -> torch.Tensor:
    """Return reuse gates [calls, sites]: 0 or 1 by arg-max in the forward pass, the softmax's gradient in the backward
    pass."""
    hard = (scores < 0.5).to(scores.dtype)
    return hard - (scores - scores.detach())
