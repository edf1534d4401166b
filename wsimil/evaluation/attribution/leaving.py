"""What the answer would be of one tile alone, and without one tile."""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from wsimil.errors import ModelError
from wsimil.evaluation.attribution.scored import ALONE, CLOSED, RECOMPUTED, Scored
from wsimil.mil.base import MILModel
from wsimil.mil.batch import BagBatch
from wsimil.ops.varlen import cu_seqlens_of

_BAGS_OF_ONE = 4096
_ROWS = 1 << 16
_MOST_ROWS = 1 << 24
"""Embedded instances that a method may look at to leave out those of one bag: some 4000 instances, each from all others."""


@torch.no_grad()
def single(model: MILModel, bags: BagBatch) -> Scored:
    """The logits of bags that are one instance each."""
    h = model.embed_instances(bags, None)
    found = []
    for rows in torch.split(torch.arange(len(h), device=h.device), _BAGS_OF_ONE):
        alone = _packed(h[rows], bags.xy0[rows], [1] * len(rows))
        found.append(model.aggregate(alone.features, alone, None).logits)
    return Scored(values=torch.cat(found), rule=ALONE)


@torch.no_grad()
def leave_one_out(model: MILModel, bags: BagBatch) -> Scored:
    """The logits of a bag less those of the bag without the instance; NaN for an instance that is all of its bag.

    By the method's closed form where it has one; else, and for the few instances that it does not know, the bag is answered for
    anew without each. Raises ModelError for a bag of which that would take too long.
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
            _refuse_too_long(len(rows) * (count - 1), count, bags.slide_ids[number])
            values[own][rows] = _recomputed(model, h[own], bags.xy0[own], rows)
    return Scored(values=values, rule=rule)


def _recomputed(
    model: MILModel, h: Float[Tensor, "n L"], xy0: Int64[Tensor, "n 2"], rows: Int64[Tensor, " k"]
) -> Float[Tensor, "k C"]:
    """What the logits of one bag lose with each of these rows, several bags in a pack."""
    count = len(h)
    whole = _packed(h, xy0, [count])
    logits = model.aggregate(h, whole, None).logits
    every = torch.arange(count - 1, device=h.device)
    found = []
    for some in torch.split(rows, max(_ROWS // (count - 1), 1)):
        others = (every + (every >= some[:, None])).flatten()  # for each row all numbers but its own
        packed = _packed(h[others], xy0[others], [count - 1] * len(some))
        found.append(logits - model.aggregate(packed.features, packed, None).logits)
    return torch.cat(found)


def _packed(h: Tensor, xy0: Tensor, lengths: list[int]) -> BagBatch:
    """Embedded instances as bags whose features nobody reads."""
    names = tuple(str(number) for number in range(len(lengths)))
    return BagBatch(features=h, xy0=xy0, cu_seqlens=cu_seqlens_of(lengths, device=h.device), slide_ids=names)


def _refuse_too_long(rows: int, count: int, slide_id: str) -> None:
    if rows > _MOST_ROWS:
        raise ModelError(
            f"slide {slide_id!r}: leave_one_out has no closed form in this method, and answering anew without each of {count}"
            f" tiles would take as long as {rows // count} answers; ask for the score single or contribution instead"
        )
