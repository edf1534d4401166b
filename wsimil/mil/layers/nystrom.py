"""Attention among all tokens of a bag at a cost linear in their number, and the positional convolution of TransMIL.

Nyström attention: Xiong et al. 2021, AAAI, arXiv:2102.03902, as the package `nystrom-attention` has it from version 0.0.11 on.
The three softmaxes are never held: A3 v and A1 (Z (A3 v)) are streamed, so memory is linear with a small factor; where no
gradient is asked for not even queries, keys and values are held. The product is associated from the right, which gives the
official numbers with 22 % fewer operations. On a CPU what learns goes through `landmark_gradient`, with gradients of its own.
"""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from wsimil.mil.batch import StepContext
from wsimil.mil.layers.token_convolution import convolved
from wsimil.ops.landmark_attention import LandmarkAttention, LandmarkWeights, few_tokens, pseudoinverse
from wsimil.ops.landmark_gradient import landmark_layer
from wsimil.ops.square_convolution import square_convolution


class NystromAttention(nn.Module):
    """Multi-head Nyström attention with a depthwise convolution over values. State: `to_qkv.weight`, `to_out.*`, `conv.weight`.

    Tokens are padded in front with zero rows to a multiple of `landmarks`; these rows are not masked, each takes weight exp(0),
    and they count in the landmarks' means, as in the official code. `shifted` returns the first rows in place of the last, an
    error of versions up to 0.0.10 with which checkpoints were trained.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        head_dim: int,
        landmarks: int,
        iterations: int,
        kernel: int,
        drop: float,
        shifted: bool = False,
    ) -> None:
        super().__init__()
        self.to_qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        self.to_out = nn.Linear(heads * head_dim, dim)
        # Along tokens alone, so in one dimension: torch 2.15 on CPU gives wrong gradients of a (33, 1) kernel in float32.
        self.conv = nn.Conv1d(heads, heads, kernel, padding=kernel // 2, groups=heads, bias=False)
        self.heads, self.landmarks, self.iterations = heads, landmarks, iterations
        self.drop, self.shifted = drop, shifted

    def draw(self, count: int, step: StepContext | None, *, device: torch.device) -> Bool[Tensor, "padded L"] | None:
        """Which numbers of the output of `count` tokens stay, padding included; None where all do."""
        if step is None or self.drop == 0:
            return None
        shape = (count + -count % self.landmarks, self.to_out.out_features)
        return step.keep_mask(shape, drop=self.drop, device=device)

    def draw_rows(self, count: int, step: StepContext | None, *, device: torch.device) -> Bool[Tensor, "T L"] | None:
        """The like for `count` rows without padding, as `spoken` takes it."""
        if step is None or self.drop == 0:
            return None
        return step.keep_mask((count, self.to_out.out_features), drop=self.drop, device=device)

    def forward(self, x: Float[Tensor, "T L"], keep: Bool[Tensor, "padded L"] | None) -> Float[Tensor, "T L"]:
        """Each token's mixture of all tokens; `keep` is what `draw` gave. Nothing is drawn here, so it may be recomputed."""
        q, k, v = self._project(x)
        q_marks, k_marks = self._marks(q), self._marks(k)
        inverse = pseudoinverse((q_marks @ k_marks.transpose(1, 2)).softmax(dim=-1), self.iterations)
        gathered = inverse @ _attend(q_marks, k, v)  # [heads, m, d]
        mixed = _attend(q, k_marks, gathered) + self.convolve(v)
        out: Tensor = self.to_out(mixed.transpose(0, 1).flatten(1))
        if keep is not None:
            out = out * keep / (1 - self.drop)
        return out[: len(x)] if self.shifted else out[len(out) - len(x) :]

    def held(self, x: Float[Tensor, "T L"], *, at: Float[Tensor, "T L"]) -> Float[Tensor, "T L"]:
        """Each token's mixture of those of `x` with the weights that `at` gives."""
        with torch.no_grad():
            q, k, _ = self._project(at)
            q_marks, k_marks = self._marks(q), self._marks(k)
            inverse = pseudoinverse((q_marks @ k_marks.transpose(1, 2)).softmax(dim=-1), self.iterations)
        v = self._values(x)
        mixed = _attend(q, k_marks, inverse @ _attend(q_marks, k, v)) + self.convolve(v)
        out: Tensor = self.to_out(mixed.transpose(0, 1).flatten(1))
        return out[: len(x)] if self.shifted else out[len(out) - len(x) :]

    def streamed(self, tokens: Float[Tensor, "T L"], norm: nn.LayerNorm) -> LandmarkAttention:
        """The same on normalized tokens where no gradient is asked for: in passes over them that hold nothing of their size."""
        return LandmarkAttention(tokens, self._weights(norm))

    def short(self, tokens: Float[Tensor, "B S L"], norm: nn.LayerNorm) -> Float[Tensor, "B S L"]:
        """The same of B bags at once, and the tokens to which it is added, for bags of no more tokens than landmarks."""
        return few_tokens(tokens, self._weights(norm))

    def learn(
        self, tokens: Float[Tensor, "T L"], norm: nn.LayerNorm, keep: Bool[Tensor, "padded L"] | None, *, count: int
    ) -> Float[Tensor, "count L"]:
        """The first `count` tokens and what the layer adds to them, with a gradient, on a CPU; `keep` as in `forward`."""
        return landmark_layer(tokens, self._weights(norm), count=count, shifted=self.shifted, keep=keep, drop=self.drop)

    def _weights(self, norm: nn.LayerNorm) -> LandmarkWeights:
        return LandmarkWeights(
            norm=norm.weight,
            norm_bias=norm.bias,
            eps=norm.eps,
            qkv=self.to_qkv.weight,
            out=self.to_out.weight,
            out_bias=self.to_out.bias,
            conv=self.conv.weight,
            heads=self.heads,
            landmarks=self.landmarks,
            iterations=self.iterations,
        )

    def add(
        self, streamed: LandmarkAttention, keep: Bool[Tensor, "padded L"] | None, *, count: int
    ) -> Float[Tensor, "count L"]:
        """The first `count` tokens and what the layer adds to them; `keep` as in `forward`."""
        return streamed.add_to(0 if self.shifted else streamed.padding, count, keep, self.drop)

    @torch.no_grad()
    def spoken(
        self, x: Float[Tensor, "T L"], weights: Float[Tensor, "heads T"], keep: Bool[Tensor, "T L"] | None
    ) -> Float[Tensor, "T L"]:
        """What each token would add to another that gives it `weights`: its weighed values, projected out."""
        values = F.linear(x, self.to_qkv.weight.chunk(3)[2]).view(len(x), self.heads, -1).transpose(0, 1)
        return self.said(values, weights, keep)

    def said(
        self,
        values: Float[Tensor, "heads T d"],
        weights: Float[Tensor, "heads T"],
        keep: Bool[Tensor, "T L"] | None,
    ) -> Float[Tensor, "T L"]:
        """Weighed values, projected out."""
        out: Tensor = self.to_out((values * weights[..., None]).transpose(0, 1).flatten(1))
        return out if keep is None else out * keep / (1 - self.drop)

    def convolve(self, v: Float[Tensor, "heads T d"]) -> Float[Tensor, "heads T d"]:
        """Values along tokens, each head with a kernel of its own."""
        return convolved(v.permute(2, 0, 1), self.conv.weight).permute(1, 2, 0)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        padding = -len(x) % self.landmarks
        qkv = F.pad(self.to_qkv(x), (0, 0, padding, 0))  # a zero row gives a zero query, key and value
        q, k, v = qkv.view(len(qkv), 3, self.heads, -1).permute(1, 2, 0, 3).unbind(0)  # [heads, T', d]
        return q * q.shape[2] ** -0.5, k, v

    def _values(self, x: Tensor) -> Tensor:
        """What `_project` gives last, alone."""
        v = F.linear(x, self.to_qkv.weight.chunk(3)[2])
        v = F.pad(v, (0, 0, -len(x) % self.landmarks, 0))
        return v.view(len(v), self.heads, -1).transpose(0, 1)

    def _marks(self, x: Tensor) -> Tensor:
        heads, count, dim = x.shape
        return x.reshape(heads, self.landmarks, count // self.landmarks, dim).mean(dim=2)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q[None], k[None], v[None], scale=1.0)[0]


class PPEG(nn.Module):
    """Depthwise convolutions of 7, 5 and 3 over tokens laid out as a square image, added to them. State: `conv{7,5,3}.*`.

    One convolution does all three: the smaller kernels lie in the middle of the larger, and the identity in theirs.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv7, self.conv5, self.conv3 = (
            nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim) for kernel in (7, 5, 3)
        )

    def forward(self, x: Float[Tensor, "S L"], side: int) -> Float[Tensor, "S L"]:
        """`x` holds `side` * `side` tokens, row by row."""
        weight, bias = self._joined()
        if x.device.type == "cpu":
            return square_convolution(x, weight, bias, side)
        image = x.t().reshape(1, -1, side, side)
        mixed = F.conv2d(image, weight, bias, padding=3, groups=len(weight)) + image
        return mixed[0].flatten(1).t()

    def alone(self, x: Float[Tensor, "B L"]) -> Float[Tensor, "B L"]:
        """The same of B squares of one token each."""
        weight, bias = self._joined()
        return x + x * weight[:, 0, 3, 3] + bias

    def _joined(self) -> tuple[Float[Tensor, "L 1 7 7"], Float[Tensor, " L"]]:
        weight = self.conv7.weight + F.pad(self.conv5.weight, (1, 1, 1, 1)) + F.pad(self.conv3.weight, (2, 2, 2, 2))
        biases = [conv.bias for conv in (self.conv7, self.conv5, self.conv3) if conv.bias is not None]
        return weight, torch.stack(biases).sum(dim=0)
