"""The global recycle network of MHIM-MIL v2: what a mask left out of a bag is summed up in a few tokens.

Tang et al. 2025, "Multiple Instance Learning Framework with Masked Hard Instance Mining for Gigapixel Histopathology Image
Analysis", IJCV, arXiv:2509.11526; https://github.com/DearCaat/MHIM-MIL, branch master, `Merge`.
"""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wsimil.mil.batch import StepContext
from wsimil.mil.layers.dropout import dropout
from wsimil.mil.layers.held import held_norm


class RecycleNetwork(nn.Module):
    """K queries, a moving average of their own answers, attend to instances and give K tokens.

    No gradient reaches the queries. State: `queries` [K, L], `norm.*`, `to_q.weight`, `to_kv.weight`, `to_out.*`.
    """

    def __init__(self, dim: int, *, tokens: int, heads: int, head_dim: int, drop: float) -> None:
        super().__init__()
        bound = math.sqrt(6 / (3 * 256 + dim))
        self.queries = nn.Parameter(torch.empty(tokens, dim).uniform_(-bound, bound), requires_grad=False)
        self.norm = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, heads * head_dim, bias=False)
        self.to_kv = nn.Linear(dim, 2 * heads * head_dim, bias=False)
        self.to_out = nn.Linear(heads * head_dim, dim)
        self.heads, self.drop = heads, drop

    def forward(self, h: Float[Tensor, "n L"], step: StepContext | None) -> Float[Tensor, "K L"]:
        """The tokens of the instances of one bag."""
        weights, v = self._attention(self.norm(h))
        mixed = dropout(weights, self.drop, step) @ v
        out: Tensor = self.to_out(mixed.transpose(0, 1).flatten(1))
        return dropout(out, self.drop, step)

    def held(self, x: Float[Tensor, "n L"], *, at: Float[Tensor, "n L"]) -> Float[Tensor, "K L"]:
        """The tokens of instances `x` with the weights and deviations that `at` gives."""
        with torch.no_grad():
            weights, _ = self._attention(self.norm(at))
        mixed = weights @ self._attention(held_norm(self.norm, x, at=at))[1]
        out: Tensor = self.to_out(mixed.transpose(0, 1).flatten(1))
        return out

    def _attention(self, normed: Tensor) -> tuple[Tensor, Tensor]:
        """Weights [heads, K, n] and values [heads, n, d] of instances."""
        q = self.to_q(self.norm(self.queries)).view(len(self.queries), self.heads, -1).transpose(0, 1)
        k, v = self.to_kv(normed).view(len(normed), 2, self.heads, -1).permute(1, 2, 0, 3).unbind(0)
        return (q @ k.transpose(1, 2) * q.shape[2] ** -0.5).softmax(dim=2), v

    @torch.no_grad()
    def remember(self, tokens: Float[Tensor, "K L"], momentum: float) -> None:
        """Move the queries toward the tokens of a step."""
        # Unseen by autograd, as official steps do it before the backward pass.
        self.queries.data.mul_(momentum).add_(tokens, alpha=1 - momentum)
