"""Ranks with a rule for equal scores, against a sort of Python's."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wsimil.ops.topk import _of_all_bags, segment_topk, topk
from wsimil.ops.varlen import cu_seqlens_of

TYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SOME = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, math.inf, -math.inf, math.nan, 6e-8])


def ranked(scores, k, *, largest):
    """Indices by value, NaN above all, then by index."""
    sign = -1 if largest else 1
    worth = [(sign * (not_a := math.isnan(x)), 0.0 if not_a else sign * x + 0.0, i) for i, x in enumerate(scores)]
    return [i for _, _, i in sorted(worth)][:k]


@pytest.mark.parametrize("dtype", TYPES)
@given(values=st.lists(SOME, min_size=1, max_size=20), k=st.integers(0, 22), largest=st.booleans())
def test_equal_scores_rank_by_index(dtype, values, k, largest):
    scores = torch.tensor(values, dtype=torch.float64).to(dtype)
    assert topk(scores, k, largest=largest).tolist() == ranked(scores.tolist(), k, largest=largest)


def test_a_negative_nan_is_above_all_too():
    scores = torch.tensor([1.0, math.inf, 0.0])
    scores.view(torch.int32)[2] = -0x400000  # a NaN whose sign bit is set
    assert topk(scores, 3).tolist() == [2, 1, 0]


@pytest.mark.parametrize("largest", [True, False])
def test_bags_rank_by_themselves(largest):
    lengths, k = (63, 1, 5, 200), 7
    scores = torch.randint(-3, 4, (sum(lengths), 2), generator=torch.Generator().manual_seed(0)).float()
    got = segment_topk(scores, cu_seqlens_of(lengths), k, largest=largest)
    assert got.shape == (4, 2, k)
    assert got.dtype == torch.int32
    for bag, part in enumerate(torch.split(scores, lengths)):
        for column in range(2):
            wanted = ranked(part[:, column].tolist(), k, largest=largest)
            assert got[bag, column].tolist() == wanted + [-1] * (k - len(wanted))


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("k", [1, 7, 300])
def test_all_bags_at_once_rank_as_each_by_itself(k, largest):
    lengths = (63, 1, 5, 200)
    scores = torch.randint(-3, 4, (sum(lengths), 2), generator=torch.Generator().manual_seed(0)).float()
    scores[[3, 70]] = math.nan
    got = _of_all_bags(scores.t(), cu_seqlens_of(lengths), k, largest=largest)
    assert torch.equal(got, segment_topk(scores, cu_seqlens_of(lengths), k, largest=largest))
