"""What goes into a method and what comes out: bags in a pack, their outputs, the terms of a loss."""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Protocol, TypeAlias
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from numpy.typing import NDArray
from torch import Tensor

from wsimil.errors import FeatureError
from wsimil.mil.criterion import Criterion, CrossEntropy
from wsimil.ops.varlen import CuSeqlens, bag_ids, check_cu_seqlens, cu_seqlens_of

BagTargets: TypeAlias = Int64[Tensor, " B"] | Int64[Tensor, "B K"] | Float64[Tensor, "B K"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BagBatch:
    """B bags, packed: rows `cu_seqlens[b]` to `cu_seqlens[b + 1]` are the instances of bag b, and there is one at least.

    `xy0` is each instance's top-left corner in level-0 px of its slide. `targets` are what the task encodes, of a classification
    class numbers, one row a bag; absent at inference.
    """

    features: Float[Tensor, "T D"]
    cu_seqlens: CuSeqlens
    xy0: Int64[Tensor, "T 2"]
    targets: BagTargets | None = None
    slide_ids: tuple[str, ...]
    lengths: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        total, bags = len(self.features), len(self.slide_ids)
        if self.features.ndim != 2 or not self.features.is_floating_point() or self.features.shape[1] < 1:
            raise ValueError(f"features are floats [T, D], got {self.features.dtype} {list(self.features.shape)}")
        if self.cu_seqlens.dtype != torch.int32 or self.cu_seqlens.shape != (bags + 1,):
            got = f"{self.cu_seqlens.dtype} {list(self.cu_seqlens.shape)}"
            raise ValueError(f"cu_seqlens is int32 [B + 1] with B = {bags}, the number of slide_ids, got {got}")
        if self.xy0.dtype != torch.int64 or self.xy0.shape != (total, 2):
            raise ValueError(f"xy0 is int64 [{total}, 2], got {self.xy0.dtype} {list(self.xy0.shape)}")
        if self.targets is not None:
            _check_targets(self.targets, bags)
        tensors = [self.cu_seqlens, self.xy0] + ([] if self.targets is None else [self.targets])
        if any(tensor.device != self.features.device for tensor in tensors):
            raise ValueError(
                f"all of a batch lies on one device, got features on {self.features.device} and others not"
            )
        ends = self.cu_seqlens.tolist()
        check_cu_seqlens(ends, total=total)
        lengths = tuple(end - begin for begin, end in pairwise(ends))
        object.__setattr__(self, "lengths", lengths)

    def __len__(self) -> int:
        return len(self.slide_ids)

    @property
    def bag_ids(self) -> Int64[Tensor, " T"]:
        """For each instance the number of its bag."""
        return bag_ids(self.cu_seqlens, total=len(self.features))

    @property
    def draw_ids(self) -> Int64[Tensor, " B"]:
        """What names each bag for draws by counter: of its slide, and so the same in every pack."""
        names = [crc32(name.encode("utf-8", "surrogatepass")) for name in self.slide_ids]
        return torch.tensor(names, device=self.features.device)

    @property
    def known_targets(self) -> BagTargets:
        """The targets. Raises ValueError where there are none."""
        if self.targets is None:
            raise ValueError("bags without targets have no loss; pack them with targets")
        return self.targets

    def to(self, device: torch.device | str | None = None, *, dtype: torch.dtype | None = None) -> BagBatch:
        """The same bags on another device; `dtype` is that of the features alone."""
        return replace(
            self,
            features=self.features.to(device=device, dtype=dtype),
            cu_seqlens=self.cu_seqlens.to(device=device),
            xy0=self.xy0.to(device=device),
            targets=None if self.targets is None else self.targets.to(device=device),
        )


def pack(
    features: Sequence[NDArray[np.floating] | Tensor],
    *,
    xy0: Sequence[NDArray[np.int64] | Tensor],
    slide_ids: Sequence[str],
    targets: Sequence[int] | NDArray[np.int64] | NDArray[np.float64] | None = None,
) -> BagBatch:
    """Bags one after another in one batch: `features` [n, D] and `xy0` [n, 2] of each, in the order of `slide_ids`.

    The batch owns its memory, except that a single bag given as a tensor is not copied. Raises FeatureError for an empty
    bag or for bags of different D, ValueError for lists that do not fit each other.
    """
    if not len(features) == len(xy0) == len(slide_ids) or not features:
        counts = f"{len(features)} features, {len(xy0)} xy0, {len(slide_ids)} slide_ids"
        raise ValueError(f"a pack takes one bag or more and as many of each, got {counts}")
    for slide_id, rows in zip(slide_ids, features, strict=True):
        if len(rows) == 0:
            raise FeatureError(
                f"slide {slide_id!r}: no instances; leave it out, a model cannot answer for an empty bag"
            )
        if rows.shape[1:] != features[0].shape[1:]:
            raise FeatureError(
                f"slide {slide_id!r}: {rows.shape[1]} features an instance where {slide_ids[0]!r} has"
                f" {features[0].shape[1]}; bags of one batch come from one encoder"
            )
    return BagBatch(
        features=_join(features),
        cu_seqlens=cu_seqlens_of([len(rows) for rows in features]),
        xy0=_join(xy0),
        targets=None if targets is None else _targets(targets),
        slide_ids=tuple(slide_ids),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BagOutput:
    """What a method says of each bag; H heads or branches.

    `attention_logits` are raw: before masking and softmax. `attention_entropy`, in nats, is that of their softmax, where it is
    known. `masked` is True where a training step kept an instance from a head. `attention` is that of methods whose weights are
    no softmax of these over the bag, such as the class token's row of Nyström attention: any sum, and negative ones too.
    """

    logits: Float[Tensor, "B C"]
    embedding: Float[Tensor, "B E"]
    attention_logits: Float[Tensor, "T H"] | None = None
    attention_entropy: Float[Tensor, "B H"] | None = None
    attention: Float[Tensor, "T H"] | None = None
    instance_logits: Float[Tensor, "T C"] | None = None
    branch_logits: Float[Tensor, "B M C"] | None = None
    masked: Bool[Tensor, "T H"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Contributions:
    """The bag's logits split over its instances: `logits[b] = bias + values[bag b].sum(0)`, to rounding.

    `of_maximum`: the logits rest on maxima, and `values` are Shapley values; else they are the terms of a sum.
    """

    output: BagOutput
    values: Float[Tensor, "T C"]
    bias: Float[Tensor, " C"]
    of_maximum: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LeftOut:
    """What each logit of a bag loses with each instance: `logits of the bag - logits without the instance`.

    Where `known` is False no closed form tells it in the precision of the numbers, and `values` mean nothing.
    """

    values: Float[Tensor, "T C"]
    known: Bool[Tensor, " T"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClassScores:
    """An output, and how each instance alone speaks for each class, in logits up to a constant of its class."""

    output: BagOutput
    values: Float[Tensor, "T C"]


class ScoreMasking(Protocol):
    """Chooses, from raw scores and the draws of a step, which instances each head does not see."""

    def __call__(self, scores: Float[Tensor, "T H"], bags: BagBatch, step: StepContext) -> Bool[Tensor, "T H"]:
        """True where the instance is masked."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StepContext:
    """All that training tells a method about a step: where chance comes from, how far training is, what an error costs.

    `masking` is applied by methods that take one and bring none of their own.

    A method draws through the functions here and nowhere else: a subclass that returns recorded draws replays a step.
    """

    generator: torch.Generator
    progress: float
    criterion: Criterion = field(default_factory=CrossEntropy)
    masking: ScoreMasking | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.progress <= 1:
            raise ValueError(f"progress lies in [0, 1], got {self.progress}")

    def keep_mask(self, shape: Sequence[int], *, drop: float, device: torch.device) -> Bool[Tensor, "*shape"]:
        """True with probability 1 - `drop`, which is met to 2**-17. Raises ValueError where that leaves nothing."""
        if not 0 <= drop < 1 - 2**-17:
            raise ValueError(f"drop: got {drop}, wanted 0 or more and less than 1 - 2**-17")
        count = int(np.prod(shape))
        # Sixteen random bits decide well enough, eight where they can tell `drop`, and 64 of them cost as much as one float.
        kind, bits = (torch.int8, 8) if drop * 2**8 % 1 == 0 else (torch.int16, 16)
        words = torch.empty(-(-count * bits // 64), dtype=torch.int64, device=self.generator.device)
        drawn = words.random_(-(2**63), None, generator=self.generator).view(kind)[:count]
        # Numbers of one byte come out in a third of the time that bools take, and where bytes were drawn, in their place.
        kept = drawn if bits == 8 else torch.empty(count, dtype=torch.int8, device=drawn.device)
        torch.ge(drawn, round(drop * (1 << bits)) - (1 << bits - 1), out=kept)
        return kept.view(torch.bool).view(*shape).to(device)

    def uniform(self, shape: Sequence[int], *, device: torch.device) -> Float[Tensor, "*shape"]:
        """Numbers of [0, 1) in float32."""
        return torch.rand(*shape, generator=self.generator, device=self.generator.device).to(device)

    def seed(self, *, device: torch.device) -> Int64[Tensor, 1] | None:
        """What draws by counter begin from, in operations that make their own; None where a step must give each draw itself."""
        words = torch.empty(1, dtype=torch.int64, device=self.generator.device)
        return words.random_(generator=self.generator).to(device)

    def permutation(self, count: int, *, device: torch.device) -> Int64[Tensor, " count"]:
        """The numbers below `count` in random order."""
        return torch.randperm(count, generator=self.generator, device=self.generator.device).to(device)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LossTerms:
    """The output of a training step and the named terms of its loss, each a scalar; a term without a weight has weight 1.

    `details` are what a method chose or computed on the way, under names of its own, for whoever looks into a step. `seen` are
    the bags that the output speaks of, where a method showed itself other instances than it was given.
    """

    output: BagOutput
    terms: Mapping[str, Float[Tensor, ""]]
    weights: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Tensor] = field(default_factory=dict)
    seen: BagBatch | None = None

    def __post_init__(self) -> None:
        if not self.terms or set(self.weights) - set(self.terms):
            raise ValueError(f"weights name terms, of which there is one or more: {[*self.weights]} of {[*self.terms]}")
        shapes = {name: list(term.shape) for name, term in self.terms.items() if term.ndim}
        if shapes:
            raise ValueError(f"a term is a scalar, got {shapes}")

    @property
    def total(self) -> Float[Tensor, ""]:
        """The weighted sum of all terms."""
        return torch.stack([self.weights.get(name, 1.0) * term for name, term in self.terms.items()]).sum()


@dataclass(frozen=True, slots=True, kw_only=True)
class RowStep(StepContext):
    """A step for some rows of a pack: an instance's draws are those it has in a step for all `total` rows."""

    whole: StepContext
    rows: Int64[Tensor, " K"]
    total: int

    def keep_mask(self, shape: Sequence[int], *, drop: float, device: torch.device) -> Bool[Tensor, "*shape"]:
        """The mask of all rows, at these."""
        return self.whole.keep_mask((self.total, *shape[1:]), drop=drop, device=device)[self.rows]

    def uniform(self, shape: Sequence[int], *, device: torch.device) -> Float[Tensor, "*shape"]:
        """The numbers of all rows, at these."""
        return self.whole.uniform((self.total, *shape[1:]), device=device)[self.rows]

    def seed(self, *, device: torch.device) -> None:
        """None: a counter would begin with the first of these rows, not of all."""

    def permutation(self, count: int, *, device: torch.device) -> Int64[Tensor, " count"]:
        """Never asked for: what is drawn for an instance has no order. Raises TypeError."""
        raise TypeError("rows of a pack have no permutation of their own")


def rows_of(step: StepContext, rows: Int64[Tensor, " K"], *, total: int) -> RowStep:
    """The step for these rows of a pack of `total`, for what is drawn instance by instance."""
    return RowStep(
        generator=step.generator,
        progress=step.progress,
        criterion=step.criterion,
        masking=step.masking,
        whole=step,
        rows=rows,
        total=total,
    )


def shared(array: NDArray[np.floating]) -> Tensor:
    """A tensor over the array's own memory, for rows that a model reads and never writes; `pack` does not copy a single one."""
    return torch.from_numpy(np.asarray(_Open(array)))


def chunks(bags: BagBatch, rows: int) -> Iterator[tuple[slice, BagBatch]]:
    """Each bag in bags of at most so many `rows`, and where in the pack these lie; none goes beyond the bag it is of."""
    begin = 0
    for slide_id, length in zip(bags.slide_ids, bags.lengths, strict=True):
        end = begin + length
        for first in range(begin, end, rows):
            place = slice(first, min(first + rows, end))
            yield (
                place,
                BagBatch(
                    features=bags.features[place],
                    cu_seqlens=cu_seqlens_of([place.stop - place.start], device=bags.features.device),
                    xy0=bags.xy0[place],
                    slide_ids=(slide_id,),
                ),
            )
        begin = end


def take(bags: BagBatch, rows: Int64[Tensor, " K"]) -> BagBatch:
    """The bags with these rows of the pack alone, bag by bag and at least one of each."""
    counts = torch.bincount(bags.bag_ids[rows], minlength=len(bags))
    ends = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(torch.int32)
    return replace(bags, features=bags.features[rows], xy0=bags.xy0[rows], cu_seqlens=ends)


class _Open:
    """An array's memory without the note that it is read-only, which torch cannot keep and warns of."""

    def __init__(self, array: NDArray[np.floating]) -> None:
        self.array = array  # whoever holds the memory holds the array
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}


def _check_targets(targets: Tensor, bags: int) -> None:
    numbers = targets.dtype == torch.int64 and targets.shape == (bags,)
    rows = targets.dtype in (torch.int64, torch.float64) and targets.ndim == 2 and len(targets) == bags
    if not (numbers or rows):
        raise ValueError(
            f"targets are int64 [{bags}], or rows [{bags}, K] of int64 or float64, got {targets.dtype} {list(targets.shape)}"
        )


def _targets(targets: Sequence[int] | NDArray[np.int64] | NDArray[np.float64]) -> Tensor:
    return torch.tensor(targets) if isinstance(targets, np.ndarray) else torch.tensor(targets, dtype=torch.int64)


def _join(parts: Sequence[NDArray[np.generic] | Tensor]) -> Tensor:
    tensors = [part for part in parts if isinstance(part, Tensor)]
    if len(tensors) == len(parts):
        return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
    # Copied once, into torch's own memory: arrays of a store are read-only, which torch does not know of.
    arrays = [np.asarray(part) for part in parts]
    total = sum(len(array) for array in arrays)
    like = torch.from_numpy(np.empty(0, np.result_type(*arrays)))
    joined = torch.empty((total, *arrays[0].shape[1:]), dtype=like.dtype)
    np.concatenate(arrays, out=joined.numpy())
    return joined
