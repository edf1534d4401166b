"""Attention within the regions of a square of tokens, and between these regions.

Tang, Zhou, Li, Huang, Zhang, Huang & Liu 2024, "Feature Re-Embedding: Towards Foundation Model-Level Performance in Computational
Pathology", CVPR, arXiv:2402.17228; https://github.com/DearCaat/RRT-MIL.

EPEG convolves attention logits along their queries. A logit is linear in its query, so the queries are convolved instead, and the
convolution's bias, which is the same for all keys, leaves the softmax as it is: the same numbers without a table of logits.
"""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from wsimil.mil.batch import StepContext
from wsimil.mil.layers.held import held_norm
from wsimil.mil.layers.recompute import recomputed
from wsimil.mil.layers.token_convolution import convolved

_EPS = 1e-8


class Regions:
    """How N tokens, row by row in the smallest square that `side` divides, fall into `side` * `side` regions of n tokens each.

    The square is filled up with zeros, which nothing masks.
    """

    def __init__(self, count: int, side: int) -> None:
        self.count, self.side = count, side
        self.width = -(-(math.isqrt(count - 1) + 1) // side)

    @property
    def number(self) -> int:
        """W, the regions."""
        return self.side**2

    @property
    def size(self) -> int:
        """n, the tokens of a region."""
        return self.width**2

    def cut(self, x: Float[Tensor, "N L"]) -> Float[Tensor, "W n L"]:
        """The tokens of each region."""
        side, width = self.side, self.width
        square = F.pad(x, (0, 0, 0, (side * width) ** 2 - self.count))
        cells = square.view(side, width, side, width, -1).transpose(1, 2)
        return cells.reshape(side * side, width * width, -1)

    def join(self, regions: Float[Tensor, "W n L"]) -> Float[Tensor, "N L"]:
        """The inverse of `cut`."""
        side, width = self.side, self.width
        cells = regions.view(side, side, width, width, -1).transpose(1, 2)
        return cells.reshape((side * width) ** 2, -1)[: self.count]


class SelfAttention(nn.Module):
    """Multi-head self-attention within each of several sequences, with EPEG where it has a kernel.

    State: `qkv.*`, `proj.*`, `epeg.*`; the gradient of `epeg.bias` is zero.
    """

    def __init__(self, dim: int, *, heads: int, kernel: int | None, drop: float) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.epeg = None if kernel is None else nn.Conv1d(heads, heads, kernel, padding=kernel // 2, groups=heads)
        self.heads, self.drop = heads, drop

    def draw(
        self, sequences: int, count: int, step: StepContext | None, *, device: torch.device
    ) -> Bool[Tensor, "W n L"] | None:
        """Which numbers of the output of so many sequences of `count` tokens stay; None where all do."""
        if step is None or self.drop == 0:
            return None
        return step.keep_mask((sequences, count, self.proj.out_features), drop=self.drop, device=device)

    def forward(self, x: Float[Tensor, "W n L"], keep: Bool[Tensor, "W n L"] | None) -> Float[Tensor, "W n L"]:
        """Each token's mixture of those of its sequence; `keep` is what `draw` gave. Nothing is drawn here."""
        out = self._mixed(*self._project(x))
        if keep is not None:
            out = out * keep / (1 - self.drop)
        return out

    def held(self, x: Float[Tensor, "W n L"], *, at: Float[Tensor, "W n L"]) -> Float[Tensor, "W n L"]:
        """Each token's mixture of those of `x` with the weights that `at` gives."""
        with torch.no_grad():
            q, k, _ = self._project(at)
        return self._mixed(q, k, self._project(x)[2])

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sequences, count, _ = x.shape
        q, k, v = (
            self.qkv(x).view(sequences, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        )  # [W, heads, n, d]
        return q * q.shape[3] ** -0.5, k, v

    def _mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        sequences, _, count, _ = q.shape
        if self.epeg is not None:
            columns = q.permute(0, 3, 1, 2).flatten(0, 1)  # [W * d, heads, n]
            moved = convolved(columns, self.epeg.weight)
            q = q + moved.view(sequences, -1, self.heads, count).permute(0, 2, 3, 1)
        mixed = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class RegionLayer(nn.Module):
    """R-MSA: `x + attention(norm(x))` within each region. State: `norm.*`, `attention.*`."""

    def __init__(self, dim: int, *, heads: int, kernel: int | None, drop: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, heads=heads, kernel=kernel, drop=drop)

    def forward(self, x: Float[Tensor, "N L"], regions: Regions, step: StepContext | None) -> Float[Tensor, "N L"]:
        """The tokens, each with what it took from its region."""
        keep = self.attention.draw(regions.number, regions.size, step, device=x.device)
        return recomputed(self._mix, x, regions, keep, step=step)

    def held(self, x: Float[Tensor, "N L"], regions: Regions, *, at: Float[Tensor, "N L"]) -> Float[Tensor, "N L"]:
        """The tokens, each with what it took of `x`, with weights and deviations that `at` gives."""
        mixed = self.attention.held(regions.cut(held_norm(self.norm, x, at=at)), at=regions.cut(self.norm(at)))
        return x + regions.join(mixed)

    def _mix(self, x: Tensor, regions: Regions, keep: Tensor | None) -> Tensor:
        mixed: Tensor = self.attention(regions.cut(self.norm(x)), keep)
        return x + regions.join(mixed)


class CrossRegionLayer(nn.Module):
    """CR-MSA: each region sends K representatives, these attend to those of the other regions, and hand back what they found.

    State: `norm.*`, `phi` [L, K] or `phi.{0,2}.weight`, `attention.*`.
    """

    def __init__(self, dim: int, *, heads: int, representatives: int, mlp: bool, drop: float) -> None:
        super().__init__()
        self.norm, self.representatives = nn.LayerNorm(dim), representatives
        if mlp:
            self.phi: nn.Module | nn.Parameter = nn.Sequential(
                nn.Linear(dim, dim // 4, bias=False), nn.Tanh(), nn.Linear(dim // 4, representatives, bias=False)
            )
        else:
            self.phi = nn.Parameter(torch.empty(dim, representatives))
            nn.init.kaiming_uniform_(self.phi, a=math.sqrt(5))
        self.attention = SelfAttention(dim, heads=heads, kernel=None, drop=drop)

    def forward(self, x: Float[Tensor, "N L"], regions: Regions, step: StepContext | None) -> Float[Tensor, "N L"]:
        """The tokens, each with what it took from other regions."""
        keep = self.attention.draw(self.representatives, regions.number, step, device=x.device)
        return recomputed(self._mix, x, regions, keep, step=step)

    def _mix(self, x: Tensor, regions: Regions, keep: Tensor | None) -> Tensor:
        tokens = regions.cut(self.norm(x))  # [W, n, L]
        gathering, shares = self._weights(tokens)
        sent = gathering.to(tokens.dtype) @ tokens  # [W, K, L]
        found = self.attention(sent.transpose(0, 1), keep).transpose(0, 1)  # among the regions, for each representative
        return x + regions.join(shares.transpose(1, 2).to(found.dtype) @ found)

    def held(self, x: Float[Tensor, "N L"], regions: Regions, *, at: Float[Tensor, "N L"]) -> Float[Tensor, "N L"]:
        """The tokens, each with what it took of `x`, with weights and deviations that `at` gives."""
        with torch.no_grad():
            tokens = regions.cut(self.norm(at))
            gathering, shares = self._weights(tokens)
            held = (gathering.to(tokens.dtype) @ tokens).transpose(0, 1)
        sent = (gathering.to(x.dtype) @ regions.cut(held_norm(self.norm, x, at=at))).transpose(0, 1)
        found = self.attention.held(sent, at=held).transpose(0, 1)
        return x + regions.join(shares.transpose(1, 2).to(found.dtype) @ found)

    def _weights(self, tokens: Float[Tensor, "W n L"]) -> tuple[Float[Tensor, "W K n"], Float[Tensor, "W K n"]]:
        """By which each region gathers its representatives, and hands out what these found."""
        logits = tokens @ self.phi if isinstance(self.phi, nn.Parameter) else self.phi(tokens)
        # In half precision the small number that keeps the range from 0 would be 0 itself.
        logits = logits.transpose(1, 2).to(torch.promote_types(logits.dtype, torch.float32))  # [W, K, n]
        low, high = logits.amin(dim=2, keepdim=True), logits.amax(dim=2, keepdim=True)
        return logits.softmax(dim=2), (logits - low) / (high - low + _EPS) * logits.softmax(dim=1)
