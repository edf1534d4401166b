"""What every backend of the op computes: its options, its results, its gradients."""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int32, Int64

Activation: TypeAlias = Literal["tanh", "relu", "gelu"]
Precision: TypeAlias = Literal["auto", "ieee", "tf32", "tf32x3", "bf16x3"]
Passes: TypeAlias = Literal["auto", "one", "two"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec:
    """All that is not a tensor.

    `mask_k`: of the `mask_k` highest scores of a bag and branch some are masked, 0 for none; of the n that there are at most
    `mask_counts[n]`, and always fewer than the bag has. `mask_stream` names the draws. `drop_of_65536`: a factor of the gate is
    dropped with this probability over 65536, and what is left is scaled up. `keep`: the backend may hold the two factors of
    the gate for the backward pass, `over`: where the gradient of h, [I, D], goes over them. `raw`: scores before masking are
    asked for. `passes`: how often Triton kernels read instances; the other backends have one way only.
    """

    activation: Activation = "tanh"
    precision: Precision = "auto"
    passes: Passes = "auto"
    mask_k: int = 0
    mask_counts: tuple[int, ...] = (0,)
    mask_stream: int = 0
    drop_of_65536: int = 0
    drop_stream: int = 0
    gram: bool = False
    raw: bool = False
    top_k: int = 0
    bottom_k: int = 0
    keep: bool = False
    over: bool = False

    def text(self) -> str:
        """All fields in order, for `of_text`; in words that a compiler of Python can follow."""
        return ";".join([_text(getattr(self, name)) for name in PoolSpec.__dataclass_fields__])

    @staticmethod
    @cache
    def of_text(text: str) -> PoolSpec:
        """The inverse of `text`."""
        fields = zip(PoolSpec.__dataclass_fields__.values(), text.split(";"), strict=True)
        named: dict[str, Any] = {field.name: _value(part, type(field.default)) for field, part in fields}
        return PoolSpec(**named)


def _text(value: object) -> str:
    return ",".join([str(each) for each in value]) if isinstance(value, tuple) else str(value)


def _value(part: str, kind: type) -> object:
    if kind is tuple:
        return tuple(int(each) for each in part.split(","))
    return part == "True" if kind is bool else kind(part)


class PoolTensors(NamedTuple):
    """What goes in. T rows of h; I instances, which are `h[rows]` or all rows of h; N bags, B branches.

    `cu_seqlens` counts instances. `mask_idx`: instances of each bag that are masked for a branch, by their place in the bag,
    padded with -1. `mask_seed` and `drop_seed` count where `spec` asks for draws. `bag_ids`: what names a bag for draws.
    """

    h: Float[Tensor, "T D"]
    w_v: Float[Tensor, "L D"]
    b_v: Float[Tensor, " L"] | None
    w_u: Float[Tensor, "L D"] | None
    b_u: Float[Tensor, " L"] | None
    w: Float[Tensor, "B L"]
    c: Float[Tensor, " B"] | None
    cu_seqlens: Int32[Tensor, " ends"]
    rows: Int32[Tensor, " I"] | None
    mask_idx: Int32[Tensor, "N B M"] | None
    mask_seed: Int64[Tensor, 1]
    drop_seed: Int64[Tensor, 1]
    bag_ids: Int64[Tensor, " N"]

    def masks(self, spec: PoolSpec) -> bool:
        """Whether anything may be masked."""
        return spec.mask_k > 0 or self.mask_idx is not None


class PoolForward(NamedTuple):
    """What comes out; float32, or float64 where h is. What was not asked for has a size of 0.

    `scores` are -inf where masked, `raw` what they were, of size 0 where there is no mask. `masked_idx` in order of rank, -1
    where fewer are masked, `masked_scores` their raw scores (-inf where -1). `top_idx`, `bottom_idx`: of raw scores, from the
    highest and from the lowest, of equal ones the first, -1 where the bag has fewer. `gates`: what `keep` holds; to a backward
    pass of size 0 where one before it has spent them.
    """

    z: Float[Tensor, "N B D"]
    lse: Float[Tensor, "N B"]
    entropy: Float[Tensor, "N B"]
    gram: Float[Tensor, "N B B"]
    scores: Float[Tensor, "B I"]
    raw: Float[Tensor, "B I"]
    masked_idx: Int32[Tensor, "N B k"]
    masked_scores: Float[Tensor, "N B k"]
    top_idx: Int32[Tensor, "N B top_k"]
    bottom_idx: Int32[Tensor, "N B bottom_k"]
    gates: Tensor


class PoolCotangents(NamedTuple):
    """Gradients of what came out, None where nothing depends on it."""

    z: Float[Tensor, "N B D"] | None
    lse: Float[Tensor, "N B"] | None
    entropy: Float[Tensor, "N B"] | None
    gram: Float[Tensor, "N B B"] | None
    scores: Float[Tensor, "B I"] | None
    raw: Float[Tensor, "B I"] | None


class PoolGradients(NamedTuple):
    """Gradients of what went in, each of its tensor's shape and type, None where it was not asked for."""

    h: Tensor | None
    w_v: Tensor | None
    b_v: Tensor | None
    w_u: Tensor | None
    b_u: Tensor | None
    w: Tensor | None
    c: Tensor | None
