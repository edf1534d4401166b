"""What the answer would be of one tile alone, and without one tile."""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

import time
from dataclasses import dataclass
from math import isqrt

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from wsimil.errors import ModelError
from wsimil.evaluation.attribution.kinds import LEAVE_ONE_OUT_TILES
from wsimil.evaluation.attribution.scored import ALONE, CLOSED, RECOMPUTED, Scored
from wsimil.mil.base import MILModel
from wsimil.mil.batch import BagBatch
from wsimil.ops.varlen import cu_seqlens_of, split_bags

_BAGS_OF_ONE = 4096
_ROWS = 1 << 16
_TIMED = 4


@torch.no_grad()
def single(model: MILModel, bags: BagBatch) -> Scored:
    """The logits of bags that are one instance each."""
    h = model.embed_instances(bags, None)
    # Bag by bag: what a bag gets does not depend on its neighbors.
    parts = [rows for part in split_bags(h, bags.cu_seqlens) for rows in torch.split(part, _BAGS_OF_ONE)]
    found = [logits for rows in parts if (logits := model.alone(rows)) is not None]
    if len(found) < len(parts):
        found = []
        for rows, xy0 in zip(torch.split(h, _BAGS_OF_ONE), torch.split(bags.xy0, _BAGS_OF_ONE), strict=True):
            found.append(model.aggregate(rows, _packed(rows, xy0, [1] * len(rows)), None).logits)
    return Scored(values=torch.cat(found), rule=ALONE)


@torch.no_grad()
def leave_one_out(model: MILModel, bags: BagBatch, *, most_tiles: int = LEAVE_ONE_OUT_TILES) -> Scored:
    """The logits of a bag less those of the bag without the instance; NaN for an instance that is all of its bag.

    By the method's closed form where it has one; else, and for the few instances that it does not know, the bag is answered for
    anew without each. Raises ModelError, with the time that it would take, where that is more work than for each of `most_tiles`
    in a bag of as many.
    """
    h = model.embed_instances(bags, None)
    closed = model.left_out(h, bags)
    rule = RECOMPUTED if closed is None else CLOSED
    values = h.new_empty((len(h), model.num_classes)) if closed is None else closed.values.clone()
    unknown = torch.ones(len(h), dtype=torch.bool, device=h.device) if closed is None else ~closed.known
    begin = 0
    for number, count in enumerate(bags.lengths):
        own = slice(begin, begin + count)
        begin += count
        if count == 1:
            values[own] = torch.nan
            continue
        rows = unknown[own].nonzero()[:, 0]
        if len(rows):
            anew = _Anew(model=model, h=h[own], xy0=bags.xy0[own])
            if len(rows) * (count - 1) > most_tiles**2:
                raise _too_long(anew, rows, bags.slide_ids[number])
            values[own][rows] = anew.lost(rows)
    return Scored(values=values, rule=rule)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Anew:
    """Answers for one bag of embedded instances without some, several bags in a pack."""

    model: MILModel
    h: Float[Tensor, "n L"]
    xy0: Int64[Tensor, "n 2"]

    def lost(self, rows: Int64[Tensor, " k"]) -> Float[Tensor, "k C"]:
        """What the logits lose with each of these rows."""
        whole = _packed(self.h, self.xy0, [len(self.h)])
        logits = self.model.aggregate(self.h, whole, None).logits
        return torch.cat([logits - self._without(some) for some in self._packs(rows)])

    def seconds(self, rows: Int64[Tensor, " k"]) -> float:
        """How long `lost` would take, by the first few rows, which are answered without twice: at first much is set up."""
        some, found = self._packs(rows)[0][:_TIMED], []
        for _ in range(2):
            begin = time.perf_counter()
            self._without(some).cpu()
            found.append(time.perf_counter() - begin)
        return min(found) * len(rows) / len(some)

    def _packs(self, rows: Int64[Tensor, " k"]) -> tuple[Int64[Tensor, " _"], ...]:
        return torch.split(rows, max(_ROWS // (len(self.h) - 1), 1))

    def _without(self, rows: Int64[Tensor, " k"]) -> Float[Tensor, "k C"]:
        left = len(self.h) - 1
        every = torch.arange(left, device=self.h.device)
        others = (every + (every >= rows[:, None])).flatten()  # for each row all numbers but its own
        packed = _packed(self.h[others], self.xy0[others], [left] * len(rows))
        return self.model.aggregate(packed.features, packed, None).logits


def _packed(h: Tensor, xy0: Tensor, lengths: list[int]) -> BagBatch:
    """Embedded instances as bags whose features nobody reads."""
    names = tuple(str(number) for number in range(len(lengths)))
    return BagBatch(features=h, xy0=xy0, cu_seqlens=cu_seqlens_of(lengths, device=h.device), slide_ids=names)


def _too_long(anew: _Anew, rows: Int64[Tensor, " k"], slide_id: str) -> ModelError:
    enough = isqrt(len(rows) * (len(anew.h) - 1) - 1) + 1
    return ModelError(
        f"slide {slide_id!r}: leave_one_out has no closed form in this method, and answering anew without each of {len(rows)}"
        f" tiles would take about {_in_words(anew.seconds(rows))}; ask for the score single or contribution instead, or allow it"
        f" with --leave-one-out-tiles {enough} (predict.leave_one_out_tiles of a study)"
    )


def _in_words(seconds: float) -> str:
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.0f} seconds"
