"""Nyström attention among all tokens of a bag in streamed passes: nothing of the size of the tokens but what comes out.

Xiong et al. 2021, AAAI, arXiv:2102.03902; Shao et al. 2021, NeurIPS, arXiv:2106.00908 (with a convolution over values). Keys and
values are computed anew in each pass over the tokens, so that a bag of a million asks for no more memory than one of a thousand.
"""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

_NUMBERS = {"cpu": 1 << 22}
_MOST_NUMBERS = 1 << 26
"""At most so many scores between tokens and landmarks at a time, over all heads; on CPU as many as stay in a cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LandmarkWeights:
    """A layer: tokens are normalized, projected to queries, keys and values, mixed, convolved along the bag and projected out.

    `landmarks` m: queries and keys are averaged over as many runs of neighbors. `iterations` of the pseudoinverse.
    """

    norm: Float[Tensor, " L"]
    norm_bias: Float[Tensor, " L"]
    eps: float
    qkv: Float[Tensor, "3*heads*d L"]
    out: Float[Tensor, "L heads*d"]
    out_bias: Float[Tensor, " L"]
    conv: Float[Tensor, "heads 1 kernel"]
    heads: int
    landmarks: int
    iterations: int


def pseudoinverse(
    a: Float[Tensor, "*B heads m m"], iterations: int, roots: Float[Tensor, " m"] | None = None
) -> Float[Tensor, "*B heads m m"]:
    """Of the landmarks' attention of a bag, or of several, by the iteration of Razavi et al. 2014, as Xiong et al. start it.

    With `roots` r a row and a column stand for r² that are alike: of attention A and what comes out both are r A r, whose
    products are those of the whole.
    """
    r = a.new_ones(a.shape[-1]) if roots is None else roots
    # The start is scaled by maxima over all heads of a bag together.
    most = (a @ r / r).amax(dim=(-2, -1)) * (r @ a / r).amax(dim=(-2, -1))
    z = a.transpose(-2, -1) / most[..., None, None, None]
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    for _ in range(iterations):
        az = a @ z
        z = 0.25 * z @ (13 * eye - az @ (15 * eye - az @ (7 * eye - az)))
    return z


def few_tokens(tokens: Float[Tensor, "B S L"], weights: LandmarkWeights) -> Float[Tensor, "B S L"]:
    """The tokens of B bags, no more than there are landmarks, and what the layer adds to them, all bags at once.

    Each token is a landmark of its own then, and the rows of zeros in front are one that counts as often as it is there. No
    gradient passes through it; rounding of a bag depends on how many stand beside it. Raises ValueError for more tokens.
    """
    count, size = tokens.shape[1], len(weights.qkv) // 3 // weights.heads
    alike = weights.landmarks - count
    if alike < 0:
        raise ValueError(f"{count} tokens are more than {weights.landmarks} landmarks; ask LandmarkAttention")
    with torch.no_grad():
        x = F.layer_norm(tokens, tokens.shape[2:], weights.norm, weights.norm_bias, weights.eps)
        qkv = F.linear(x, weights.qkv).view(len(x), count, 3, weights.heads, size)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        ahead = int(alike > 0)
        q, k = (F.pad(one, (0, 0, ahead, 0)) for one in (q / math.sqrt(size), k))  # [B, heads, m, d]
        scores = q @ k.transpose(2, 3)
        roots = q.new_ones(count + ahead)
        if ahead:
            scores[..., 0] += math.log(alike)
            roots[0] = math.sqrt(alike)
        shares = scores.softmax(dim=-1)
        inverse = pseudoinverse(roots[:, None] * shares / roots, weights.iterations, roots) / roots[:, None] * roots
        mixed = shares[:, :, ahead:] @ (inverse @ (shares[..., ahead:] @ v)) + _taps(weights.conv, count) @ v
        more = F.linear(mixed.transpose(1, 2).flatten(2), weights.out, weights.out_bias)
        return tokens + more


def _taps(kernel: Float[Tensor, "heads 1 K"], count: int) -> Float[Tensor, "heads S S"]:
    """A convolution of `count` tokens with zeros about them as a product."""
    place = torch.arange(count, device=kernel.device)
    padded = F.pad(kernel[:, 0], (count, count))
    return padded[:, kernel.shape[2] // 2 + count + place - place[:, None]]


class LandmarkAttention:
    """One bag, its landmarks, and what they gathered: two passes over the tokens when it is made, one for each question.

    In front of the tokens [T, L] stand zero rows up to a multiple of the landmarks, which count: places are those with them.
    Landmarks of zero rows alone are alike, so that of these the last is computed for all: a bag of few tokens has few landmarks.
    No gradient passes through it.
    """

    @torch.no_grad()
    def __init__(self, tokens: Float[Tensor, "T L"], weights: LandmarkWeights) -> None:
        self.tokens, self.weights = tokens, weights
        self.padding = -len(tokens) % weights.landmarks
        self.places = len(tokens) + self.padding
        self._run = self.places // weights.landmarks
        self._alike = max(self.padding // self._run, 1)
        self._chunk = max(_NUMBERS.get(tokens.device.type, _MOST_NUMBERS) // (weights.heads * self._marks), 1)
        means = self._means()
        self.q_marks, self.k_marks = self._heads(means, 0) * self._scale, self._heads(means, 1)  # [heads, m, d]
        self.inverse = self._inverse()
        self.total, gathered = self._gather()  # [heads, m], [heads, m, d]
        self.spread = self.inverse @ gathered.to(self.inverse.dtype)

    @torch.no_grad()
    def add_to(
        self, begin: int, count: int, keep: Bool[Tensor, "places L"] | None = None, drop: float = 0.0
    ) -> Float[Tensor, "count L"]:
        """The first `count` tokens and the outputs of as many places from `begin` on; of these what `keep` leaves, scaled up."""
        result = self.tokens.new_empty(count, self.tokens.shape[1])
        for first, last in self._chunks(begin, begin + count):
            more = self._output(first, last)
            if keep is not None:
                more = more * keep[first:last] / (1 - drop)
            result[first - begin : last - begin] = self.tokens[first - begin : last - begin] + more
        return result

    @torch.no_grad()
    def row(self, token: int) -> Float[Tensor, "heads T"]:
        """The weights that one token gives to all: a row of A1 Z A3, which need not sum to 1 and may be negative."""
        place = self.padding + token
        query = self._heads(self._normalized(place, place + 1), 0) * self._scale  # [heads, 1, d]
        shares = self._shares(query) @ self.inverse  # [heads, 1, m]
        found = []
        for first, last in self._chunks(self.padding, self.places):
            keys = self._heads(self._normalized(first, last), 1)
            scores = (self.q_marks @ keys.transpose(1, 2)).to(self.total.dtype)
            found.append((shares.to(scores.dtype) @ scores.sub_(self.total[..., None]).exp_())[:, 0])
        return torch.cat(found, dim=1)

    @property
    def _marks(self) -> int:
        """m, the landmarks that are not alike."""
        return self.weights.landmarks - self._alike + 1

    @property
    def _scale(self) -> float:
        return 1 / math.sqrt(len(self.weights.qkv) // 3 // self.weights.heads)

    def _chunks(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        for first in range(begin, end, self._chunk):
            yield first, min(first + self._chunk, end)

    def _normalized(self, begin: int, end: int) -> Tensor:
        """Tokens of these places; zeros where there are none."""
        first, last = max(begin - self.padding, 0), min(end - self.padding, len(self.tokens))
        inside = self.tokens[first : max(last, first)]
        w = self.weights
        x = F.layer_norm(inside, inside.shape[1:], w.norm, w.norm_bias, w.eps)
        before = min(end, self.padding) - begin if begin < self.padding else 0
        after = end - begin - before - len(x)
        return F.pad(x, (0, 0, before, after)) if before or after else x

    def _heads(self, x: Tensor, part: int) -> Tensor:
        """Queries (0), keys (1) or values (2), [heads, n, d]."""
        size = len(self.weights.qkv) // 3
        found = F.linear(x, self.weights.qkv[part * size : (part + 1) * size])
        return found.view(len(x), self.weights.heads, -1).transpose(0, 1)

    def _shares(self, queries: Tensor) -> Tensor:
        """Of scaled queries [heads, n, d] the attention to each landmark, [heads, n, m]; to those alike all that they get."""
        scores = queries @ self.k_marks.transpose(1, 2)
        if self._alike > 1:
            scores[..., 0] += math.log(self._alike)
        return scores.softmax(dim=-1)

    def _inverse(self) -> Tensor:
        """What is multiplied by shares from the left and by what each landmark gathered from the right, [heads, m, m]."""
        roots = self.q_marks.new_ones(self._marks)
        roots[0] = math.sqrt(self._alike)
        found = pseudoinverse(roots[:, None] * self._shares(self.q_marks) / roots, self.weights.iterations, roots)
        return found / roots[:, None] * roots

    def _means(self) -> Tensor:
        """Of the tokens of each landmark, [m, L]: projections of means are means of projections."""
        run = self._run
        many = max(self._chunk // run, 1)
        found = []
        for first in range(self._alike - 1, self.weights.landmarks, many):
            last = min(first + many, self.weights.landmarks)
            x = self._normalized(first * run, last * run)
            found.append(x.view(last - first, run, -1).mean(dim=1))
        return torch.cat(found)

    def _gather(self) -> tuple[Tensor, Tensor]:
        """Of each landmark the log of the sum of exp(score) over all places, and their values by softmax."""
        wide = torch.promote_types(self.q_marks.dtype, torch.float32)
        # A row of padding has score 0 and value 0.
        highest = self.q_marks.new_full(self.q_marks.shape[:2], 0.0 if self.padding else -torch.inf, dtype=wide)
        total = torch.full_like(highest, self.padding)
        gathered = torch.zeros_like(self.q_marks, dtype=wide)
        for first, last in self._chunks(self.padding, self.places):
            x = self._normalized(first, last)
            scores = (self.q_marks @ self._heads(x, 1).transpose(1, 2)).to(wide)  # [heads, m, n]
            above = torch.maximum(highest, scores.amax(dim=2))
            shrink = (highest - above).exp()
            powers = scores.sub_(above[..., None]).exp_()
            total = total * shrink + powers.sum(dim=2)
            gathered = gathered * shrink[..., None] + powers @ self._heads(x, 2).to(wide)
            highest = above
        return highest + total.log(), gathered / total[..., None]

    def _output(self, begin: int, end: int) -> Tensor:
        w = self.weights
        halo = w.conv.shape[2] // 2
        x = self._normalized(begin - halo, end + halo)
        queries = self._heads(x[halo : halo + end - begin], 0) * self._scale
        mixed = self._shares(queries) @ self.spread
        values = self._heads(x, 2).permute(2, 0, 1)  # [d, heads, n + 2 halo]
        mixed = mixed + F.conv1d(values, w.conv, groups=w.heads).permute(1, 2, 0)
        return F.linear(mixed.transpose(0, 1).flatten(1), w.out, w.out_bias)
