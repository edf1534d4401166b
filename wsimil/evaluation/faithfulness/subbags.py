"""A model's logits for many parts of one bag: instances are embedded once, and parts go through the model together."""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from wsimil.errors import ModelError
from wsimil.evaluation.cases import Floats, Ints
from wsimil.mil.base import MILModel
from wsimil.mil.batch import BagBatch
from wsimil.mil.ensemble import Ensemble
from wsimil.ops.varlen import cu_seqlens_of

MAX_INSTANCES = 32_768
"""Rows that parts have together in one pass, unless told otherwise: enough to keep a core busy, 16 MB of 128 numbers each."""


class SubBags:
    """One bag, of which any parts can be asked about: a part is what the model would be given had the others never been tiled.

    An ensemble's members embed the bag once each. A method whose answer is not what its `aggregate` makes of embedded instances
    gets features; its answers are its own too, and cost more. Raises ModelError for a batch of several bags.
    """

    def __init__(self, model: MILModel, bag: BagBatch, *, max_instances: int = MAX_INSTANCES) -> None:
        if len(bag) != 1 or max_instances < 1:
            raise ModelError(
                f"parts are of one bag and packed up to >= 1 instances, got {len(bag)} bags and {max_instances}"
            )
        self._bag, self._max = bag, max_instances
        members = model.each() if isinstance(model, Ensemble) else [model]
        self._members: list[tuple[MILModel, Float[Tensor, "T L"] | None]] = []
        with torch.no_grad():
            for member in members:
                h = member.embed_instances(bag, None)
                self._members.append((member, h if _answers_by(member, h, bag) else None))

    def __len__(self) -> int:
        """How many instances the whole bag has."""
        return len(self._bag.features)

    def logits(self, parts: Iterable[Ints]) -> Floats:
        """Logits [S, C] of S parts, each the numbers of its rows in rising order, one at least."""
        found = [self._pass(group) for group in _grouped(parts, self._max)]
        return np.concatenate(found) if found else np.zeros((0, self._members[0][0].num_classes))

    @torch.no_grad()
    def _pass(self, parts: Sequence[Ints]) -> Floats:
        device = self._bag.features.device
        rows = torch.from_numpy(np.concatenate(parts)).to(device)
        ends = cu_seqlens_of([len(part) for part in parts], device=device)
        names = self._bag.slide_ids * len(parts)
        answers = []
        for member, h in self._members:
            # `aggregate` reads no feature, so that the embedded instances stand in for them and D numbers a row are not moved.
            taken = (self._bag.features if h is None else h)[rows]
            bags = BagBatch(features=taken, cu_seqlens=ends, xy0=self._bag.xy0[rows], slide_ids=names)
            output = member(bags) if h is None else member.aggregate(taken, bags, None)
            answers.append(output.logits)
        return np.asarray(torch.stack(answers).mean(dim=0).double().cpu().numpy(), np.float64)


def _answers_by(model: MILModel, h: Float[Tensor, "T L"], bag: BagBatch) -> bool:
    if type(model).forward is MILModel.forward:
        return True
    return torch.equal(model.aggregate(h, bag, None).logits, model(bag).logits)


def _grouped(parts: Iterable[Ints], most: int) -> Iterator[list[Ints]]:
    group: list[Ints] = []
    rows = 0
    for part in parts:
        if not len(part):
            raise ModelError("a part of a bag has one instance or more; a model has no answer for none")
        if group and rows + len(part) > most:
            yield group
            group, rows = [], 0
        group.append(part)
        rows += len(part)
    if group:
        yield group
