"""Multi-head attention of a few learned queries over a bag, without the projections of all instances.

A query does not depend on the bag, so its product with the key projection is one vector for each head; the value projection is
linear, so it may follow the pooling. Both are exact.
"""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wsimil.ops.packed_linear import row_linear

_EPS = 1e-6


class MultiHeadPool(nn.Module):
    """Projections of one attention. State: `q_proj.*` and `k_proj.*` where it has queries, `v_proj.*`, `out_proj.*`, `norm.*`."""

    def __init__(self, dim: int, heads: int, *, with_query: bool) -> None:
        super().__init__()
        if with_query:
            self.q_proj, self.k_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.v_proj, self.out_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=_EPS)
        self.heads = heads

    def project(self, pooled: Float[Tensor, "B heads L"]) -> Float[Tensor, "B L"]:
        """Values of pooled instances, each head with its own rows of the projection, joined and projected out."""
        weights = self.v_proj.weight.view(self.heads, -1, self.v_proj.in_features)  # [heads, d, L]
        parts = [row_linear(pooled[:, head], weights[head], None) for head in range(self.heads)]
        return row_linear(torch.cat(parts, dim=1) + self.v_proj.bias, self.out_proj.weight, self.out_proj.bias)


def fold_queries(
    queries: Float[Tensor, "M L"], attentions: Sequence[MultiHeadPool]
) -> tuple[Float[Tensor, "MH L"], Float[Tensor, " MH"]]:
    """Weight and bias of the linear layer from an instance to its scores, attention by attention and head by head."""
    keys, offsets = [], []
    for query, attention in zip(queries, attentions, strict=True):
        q = attention.q_proj(query).view(attention.heads, -1)  # [heads, d]
        q = q * q.shape[1] ** -0.5
        k = attention.k_proj.weight.view(attention.heads, -1, len(query))  # [heads, d, L]
        keys.append((q[:, None] @ k)[:, 0])
        offsets.append((q * attention.k_proj.bias.view_as(q)).sum(dim=1))
    return torch.cat(keys), torch.cat(offsets)
