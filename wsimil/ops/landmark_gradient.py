"""Nyström attention among all tokens of a bag on a CPU where a gradient is asked for: what is large is held once, nothing twice.

The formulas are those of `landmark_attention`. Queries, keys and values are held, the three softmaxes never. Only what is asked
for is computed: where that is the class token alone, one query, and no other row of the output. The convolution along the bag is
one over all columns as they lie in memory; the gradient of its weights is a sum of products of blocks of neighbors.
"""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from wsimil.ops.landmark_attention import LandmarkWeights

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

_BLOCK = 64
"""Neighbors whose products give the gradient of a convolution; of a block and its borders only the middle is of use."""

_NARROW = 32
"""With fewer columns, 16 for one, torch 2.15 on CPU never ends a convolution in bfloat16 whose padding is about its kernel."""


def landmark_layer(
    tokens: Float[Tensor, "T L"],
    weights: LandmarkWeights,
    *,
    count: int,
    shifted: bool = False,
    keep: Bool[Tensor, "places L"] | None = None,
    drop: float = 0.0,
) -> Float[Tensor, "count L"]:
    """The first `count` tokens and what each takes of all; of that what `keep` leaves, scaled up by 1 / (1 - drop).

    Places are those of the tokens with zero rows in front up to a multiple of the landmarks, as in `LandmarkAttention`; the first
    token takes from that of its own place, or where `shifted` from the first place. Under autocast products are in its type.
    Differentiable once. Raises ValueError for a convolution that has no middle.
    """
    if weights.conv.shape[2] % 2 == 0:
        raise ValueError(f"conv: got a kernel of {weights.conv.shape[2]}, wanted an odd number of neighbors")
    kind = tokens.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tokens.dtype
    places = _Places.of(len(tokens), weights.landmarks, count, shifted=shifted)
    with torch.autocast(kind, enabled=False):
        near = _near(places, weights.conv.shape[2] // 2)
        q, k, v, q_marks, k_marks, first, v_near = _Project.apply(
            tokens, weights.norm, weights.norm_bias, weights.qkv, weights.eps, places, near, dtype
        )
        q, k, q_marks, k_marks = (_heads(part, weights.heads) for part in (q, k, q_marks, k_marks))
        scale = 1 / math.sqrt(q.shape[2])
        between = ((q_marks * scale) @ k_marks.transpose(1, 2)).softmax(dim=2)
        inverse = _Pseudoinverse.apply(between, weights.iterations)
        gathered = inverse @ _attend(q_marks, k, _heads(v, weights.heads), scale)  # [heads, m, d]
        mixed = _attend(q, k_marks, gathered, scale).transpose(0, 1).flatten(1)
        mixed = _Convolved.apply(mixed, v_near if len(v_near) else v, weights.conv, places, near)
        here = None if keep is None else keep[places.begin : places.begin + count]
        found: Tensor = _Said.apply(first, mixed, weights.out, weights.out_bias, here, 1 / (1 - drop))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Places:
    """Zero rows in front of the tokens, all places, how many make a landmark, and which are asked for: `count` from `begin`."""

    padding: int
    total: int
    run: int
    begin: int
    count: int

    @staticmethod
    def of(tokens: int, landmarks: int, count: int, *, shifted: bool) -> _Places:
        padding = -tokens % landmarks
        total = tokens + padding
        return _Places(
            padding=padding, total=total, run=total // landmarks, begin=0 if shifted else padding, count=count
        )

    @property
    def empty(self) -> int:
        """How many of those that are asked for are zero rows."""
        return min(max(self.padding - self.begin, 0), self.count)

    @property
    def asked(self) -> slice:
        """The tokens at the others."""
        return slice(self.begin + self.empty - self.padding, self.begin + self.count - self.padding)

    @property
    def first_whole(self) -> tuple[int, int]:
        """The first landmark that is of tokens alone, and how many tokens come before it."""
        landmark = -(-self.padding // self.run)
        return landmark, landmark * self.run - self.padding

    def means(self, x: Float[Tensor, "T L"]) -> Float[Tensor, "m L"]:
        """Of each landmark's places, zero rows among them."""
        whole, before = self.first_whole
        found = x.new_zeros(self.total // self.run, x.shape[1])
        if before:
            found[whole - 1] = x[:before].sum(dim=0) / self.run
        torch.mean(x[before:].view(-1, self.run, x.shape[1]), dim=1, out=found[whole:])
        return found

    def spread_(self, x: Float[Tensor, "T L"], of_means: Float[Tensor, "m L"]) -> None:
        """Add the gradient of the means to that of what they are of."""
        whole, before = self.first_whole
        if before:
            x[:before] += of_means[whole - 1] / self.run
        x[before:].view(-1, self.run, x.shape[1]).add_(of_means[whole:, None], alpha=1 / self.run)


class _Project(torch.autograd.Function):
    """Queries where they are asked for, keys and values of all places, the landmarks' queries and keys; zero rows give zeros.

    Also the tokens that are asked for, and the values near them where these are few: their gradients are then as small as they.
    """

    @staticmethod
    def forward(
        ctx: Any,
        tokens: Tensor,
        norm: Tensor,
        norm_bias: Tensor,
        qkv: Tensor,
        eps: float,
        places: _Places,
        near: slice,
        dtype: torch.dtype,
    ) -> tuple[Tensor, ...]:
        x, mean, deviation = torch.native_layer_norm(tokens, tokens.shape[1:], norm, norm_bias, eps)
        means = places.means(x)
        x = x.to(dtype)
        w_q, w_k, w_v = qkv.to(dtype).chunk(3)
        q = x.new_empty(places.count, len(w_q))
        q[: places.empty] = 0
        k, v = (x.new_empty(places.total, len(w_q)) for _ in range(2))
        torch.mm(x[places.asked], w_q.t(), out=q[places.empty :])
        for part, weight in ((k, w_k), (v, w_v)):
            part[: places.padding] = 0
            torch.mm(x, weight.t(), out=part[places.padding :])
        ctx.save_for_backward(tokens, norm, norm_bias, qkv, mean, deviation, means)
        ctx.how = places, near, dtype, eps
        v_near = v[near].clone() if places.count < len(tokens) else v.new_empty(0, v.shape[1])
        marks = means.to(dtype)
        return q, k, v, marks @ w_q.t(), marks @ w_k.t(), tokens[: places.count].clone(), v_near

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        tokens, norm, norm_bias, qkv, mean, deviation, means = ctx.saved_tensors
        places, near, dtype, eps = ctx.how
        of_q, of_k, of_v, of_q_marks, of_k_marks = (gradient.to(dtype) for gradient in gradients[:5])
        of_first, of_v_near = gradients[5:]
        w_q, w_k, w_v = qkv.to(dtype).chunk(3)
        of_x = torch.mm(of_k[places.padding :], w_k).to(tokens.dtype)
        _add_product(of_x, of_v[places.padding :], w_v)
        _add_product(of_x[places.asked], of_q[places.empty :], w_q)
        places.spread_(of_x, _product(of_q_marks, w_q, tokens.dtype) + _product(of_k_marks, w_k, tokens.dtype))
        # The values near the tokens that are asked for, and which tokens those are.
        of_near = of_v_near[max(places.padding - near.start, 0) :].to(dtype)
        beside = slice(near.stop - places.padding - len(of_near), near.stop - places.padding)
        if len(of_near):
            _add_product(of_x[beside], of_near, w_v)
        of_qkv = None
        if ctx.needs_input_grad[3]:
            x = F.layer_norm(tokens, tokens.shape[1:], norm, norm_bias, eps).to(dtype)
            of_qkv = torch.empty_like(qkv)
            of_w_q, of_w_k, of_w_v = of_qkv.chunk(3)
            of_w_q.copy_(of_q[places.empty :].t() @ x[places.asked])
            of_w_k.copy_(of_k[places.padding :].t() @ x)
            of_w_v.copy_(of_v[places.padding :].t() @ x)
            _add_product(of_w_q, of_q_marks.t(), means.to(dtype))
            _add_product(of_w_k, of_k_marks.t(), means.to(dtype))
            if len(of_near):
                _add_product(of_w_v, of_near.t(), x[beside])
            del x
        of_tokens, of_norm, of_bias = torch.ops.aten.native_layer_norm_backward(
            of_x, tokens, tokens.shape[1:], mean, deviation, norm, norm_bias, [True, *ctx.needs_input_grad[1:3]]
        )
        of_tokens[: places.count] += of_first
        return of_tokens, of_norm, of_bias, of_qkv, None, None, None, None


class _Pseudoinverse(torch.autograd.Function):
    """`landmark_attention.pseudoinverse`: z' = z s / 4, s = 13 - p r, r = 15 - 7 p + p p, p = a z."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, iterations: int) -> Tensor:
        z, held = _start(a).contiguous(), []
        for _ in range(iterations):
            p = a @ z
            r = torch.baddbmm(p, p, p, beta=-7)
            r.diagonal(dim1=1, dim2=2).add_(15)
            s = torch.bmm(p, r).neg_()
            s.diagonal(dim1=1, dim2=2).add_(13)
            held += [z, p, r, s]
            z = torch.bmm(z, s).mul_(0.25)
        ctx.save_for_backward(a, *held)
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_z: Tensor) -> tuple[Tensor, None]:
        a, *held = ctx.saved_tensors
        of_a = torch.zeros_like(a)
        for last in range(len(held), 0, -4):
            z, p, r, s = held[last - 4 : last]
            of_s = torch.bmm(z.transpose(1, 2), of_z).mul_(0.25)
            of_z = torch.bmm(of_z, s.transpose(1, 2)).mul_(0.25)
            of_r = torch.bmm(p.transpose(1, 2), of_s).neg_()
            of_p = torch.bmm(of_s, r.transpose(1, 2)).neg_().sub_(of_r, alpha=7)
            of_p.baddbmm_(of_r, p.transpose(1, 2))
            of_p.baddbmm_(p.transpose(1, 2), of_r)
            of_a.baddbmm_(of_p, z.transpose(1, 2))
            of_z.baddbmm_(a.transpose(1, 2), of_p)
        with torch.enable_grad():
            leaf = a.detach().requires_grad_()
            (of_start,) = torch.autograd.grad(_start(leaf), leaf, of_z)
        return of_a.add_(of_start), None


class _Convolved(torch.autograd.Function):
    """`mixed` and the convolution of values along the bag, at the places that are asked for."""

    @staticmethod
    def forward(ctx: Any, mixed: Tensor, v: Tensor, conv: Tensor, places: _Places, near: slice) -> Tensor:
        here = near if len(v) == places.total else slice(0, len(v))
        ctx.save_for_backward(v, conv)
        ctx.how = places, near, here
        found = _convolution(v[here], conv.to(v.dtype), conv.shape[2] // 2)
        begin = places.begin - near.start
        return found[begin : begin + places.count].add_(mixed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        v, conv = ctx.saved_tensors
        (places, near, here), border = ctx.how, conv.shape[2] // 2
        gradient = gradient.contiguous()
        back = _convolution(gradient, conv.flip(2).to(v.dtype), 2 * border)  # from `border` places before the first on
        first = near.start - places.begin + border
        of_v = torch.zeros_like(v)
        of_v[here] = back[first : first + near.stop - near.start]
        of_conv = None
        if ctx.needs_input_grad[2]:
            front = border - (places.begin - near.start)
            x = F.pad(v[here], (0, 0, front, places.count + 2 * border - front - (near.stop - near.start)))
            of_conv = _of_taps(gradient, x, conv)
        return gradient, of_v, of_conv, None, None


class _Said(torch.autograd.Function):
    """The first tokens and what is said to them, projected out; where dropout took it nothing is held but that it did."""

    @staticmethod
    def forward(
        ctx: Any, first: Tensor, mixed: Tensor, weight: Tensor, bias: Tensor, keep: Tensor | None, scale: float
    ) -> Tensor:
        factor = 1.0 if keep is None else scale
        out = F.linear(mixed, (weight * factor).to(mixed.dtype)).to(first.dtype).add_(bias * factor)
        if keep is not None:
            out.mul_(keep)
        ctx.save_for_backward(mixed, weight, keep)
        ctx.factor = factor
        return out.add_(first)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        mixed, weight, keep = ctx.saved_tensors
        factor = ctx.factor
        inner = gradient if keep is None else gradient * keep
        of_bias = inner.sum(dim=0).mul_(factor) if ctx.needs_input_grad[3] else None
        inner = inner.to(mixed.dtype)
        of_weight = (inner.t() @ mixed).to(weight.dtype).mul_(factor) if ctx.needs_input_grad[2] else None
        return gradient, inner @ (weight * factor).to(mixed.dtype), of_weight, of_bias, None, None


def _start(a: Float[Tensor, "heads m m"]) -> Float[Tensor, "heads m m"]:
    """What the iteration begins with, scaled by maxima over all heads together."""
    return a.transpose(1, 2) / (a.sum(dim=2).max() * a.sum(dim=1).max())


def _heads(x: Float[Tensor, "n heads*d"], heads: int) -> Float[Tensor, "heads n d"]:
    return x.view(len(x), heads, -1).transpose(0, 1)


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return F.scaled_dot_product_attention(q[None], k[None], v[None], scale=scale)[0]


def _product(x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    return (x @ y).to(dtype)


def _add_product(to: Tensor, x: Tensor, y: Tensor) -> None:
    if to.dtype == x.dtype:
        to.addmm_(x, y)
    else:
        to += x @ y


def _near(places: _Places, border: int) -> slice:
    """The places that those that are asked for have as neighbors."""
    return slice(max(places.begin - border, 0), min(places.begin + places.count + border, places.total))


def _convolution(x: Float[Tensor, "n heads*d"], kernel: Float[Tensor, "heads 1 K"], padding: int) -> Tensor:
    """Along rows, [n + 2 padding - K + 1, heads*d]; columns lie side by side, which the convolution of a CPU likes best."""
    columns = kernel.repeat_interleave(x.shape[1] // len(kernel), dim=0)[:, :, None]
    image = x.view(1, 1, *x.shape).permute(0, 3, 1, 2)
    if x.shape[1] < _NARROW:
        wide = torch.promote_types(x.dtype, torch.float32)
        image, columns = image.to(wide), columns.to(wide)
    with torch.autocast(x.device.type, enabled=False):  # which may be on where gradients are asked for
        found = F.conv2d(image, columns, padding=(0, padding), groups=x.shape[1])
    return found[0, :, 0].t().contiguous().to(x.dtype)


def _of_taps(gradient: Float[Tensor, "n heads*d"], x: Float[Tensor, "n_and_borders heads*d"], like: Tensor) -> Tensor:
    """`sum over t and d of gradient[t] x[t + j]` for each head and tap j."""
    heads, taps = len(like), like.shape[2]
    wide = torch.promote_types(x.dtype, torch.float32)
    found = like.new_zeros(like.shape, dtype=wide)
    whole = len(gradient) // _BLOCK * _BLOCK
    for begin, end, block in ((0, whole, _BLOCK), (whole, len(gradient), len(gradient) - whole)):
        if begin == end:
            continue
        rows = gradient[begin:end].view(-1, block, heads, gradient.shape[1] // heads)
        near = x[begin : end + taps - 1]
        width = near.shape[1]
        windows = near.as_strided(
            (len(rows), block + taps - 1, heads, rows.shape[3]),
            (block * width, width, rows.shape[3], 1),
            near.storage_offset(),
        )
        for head in range(heads):
            both = torch.bmm(rows[:, :, head], windows[:, :, head].transpose(1, 2)).sum(dim=0, dtype=wide)
            found[head, 0] += both.as_strided((block, taps), (block + taps, 1)).sum(dim=0)
    return found.to(like.dtype)
