"""Packs of bags: what they hold, what they refuse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from wsimil.errors import FeatureError
from wsimil.mil.batch import BagOutput, LossTerms, StepContext, chunks, pack, shared


def make_pack(lengths=(3, 1, 63), dtype=np.float16, targets=(0, 1, 0)):
    generator = np.random.default_rng(0)
    features = [generator.normal(size=(n, 5)).astype(dtype) for n in lengths]
    xy0 = [np.arange(2 * n, dtype=np.int64).reshape(n, 2) for n in lengths]
    bags = pack(features, xy0=xy0, slide_ids=[f"s{i}" for i in range(len(lengths))], targets=targets)
    return bags, features, xy0


def test_a_pack_holds_the_bags_in_order():
    bags, features, xy0 = make_pack()
    assert bags.features.dtype == torch.float16
    assert np.array_equal(bags.features.numpy(), np.concatenate(features))
    assert np.array_equal(bags.xy0.numpy(), np.concatenate(xy0))
    assert bags.cu_seqlens.tolist() == [0, 3, 4, 67]
    assert bags.lengths == (3, 1, 63)
    assert len(bags) == 3
    assert bags.bag_ids.tolist() == [0] * 3 + [1] + [2] * 63
    assert bags.targets is not None
    assert bags.targets.tolist() == [0, 1, 0]


def test_read_only_features_of_a_store_are_packed_without_a_warning():
    _, features, xy0 = make_pack((4,), targets=None)
    features[0].setflags(write=False)
    bags = pack(features, xy0=xy0, slide_ids=["a"])
    bags.features[0, 0] = 7
    assert features[0][0, 0] != 7


def test_a_shared_array_is_read_where_it_lies_and_lives_as_long_as_its_tensor():
    rows = np.arange(2000, dtype=np.float32).reshape(1000, 2)
    rows.setflags(write=False)
    address, wanted = rows.ctypes.data, rows.tolist()
    tensor = shared(rows)
    assert tensor.data_ptr() == address
    bags = pack([tensor], xy0=[np.zeros((1000, 2), np.int64)], slide_ids=["a"])
    assert bags.features.data_ptr() == address
    del rows, tensor
    assert bags.features.tolist() == wanted


def test_chunks_are_of_one_bag_each_and_hold_every_row_once():
    bags, features, _ = make_pack((3, 1, 63), targets=None)
    parts = list(chunks(bags, 25))
    assert [(place.start, place.stop) for place, _ in parts] == [(0, 3), (3, 4), (4, 29), (29, 54), (54, 67)]
    assert [part.slide_ids for _, part in parts] == [("s0",), ("s1",), ("s2",), ("s2",), ("s2",)]
    assert np.array_equal(np.concatenate([part.features for _, part in parts]), np.concatenate(features))
    assert torch.equal(torch.cat([part.xy0 for _, part in parts]), bags.xy0)


def test_bags_of_two_float_types_are_packed_in_the_wider():
    _, features, xy0 = make_pack((4, 2), targets=None)
    bags = pack([features[0], features[1].astype(np.float32)], xy0=xy0, slide_ids=["a", "b"])
    assert bags.features.dtype == torch.float32


def test_tensors_are_packed_as_arrays_are():
    bags, features, xy0 = make_pack()
    again = pack(
        [torch.from_numpy(rows) for rows in features],
        xy0=[torch.from_numpy(places) for places in xy0],
        slide_ids=bags.slide_ids,
    )
    assert torch.equal(again.features, bags.features)
    assert torch.equal(again.xy0, bags.xy0)


def test_features_alone_change_their_type():
    bags, _, _ = make_pack()
    wide = bags.to("cpu", dtype=torch.float64)
    assert wide.features.dtype == torch.float64
    assert (wide.xy0.dtype, wide.cu_seqlens.dtype) == (torch.int64, torch.int32)
    assert wide.lengths == bags.lengths


def test_an_empty_bag_is_refused_by_its_name():
    with pytest.raises(FeatureError, match=r"'s1'.*no instances"):
        make_pack((3, 0, 2))


def test_bags_of_two_widths_are_refused_by_name():
    with pytest.raises(FeatureError, match=r"'b'.*6.*'a'.*5"):
        pack(
            [np.zeros((2, 5), np.float32), np.zeros((2, 6), np.float32)],
            xy0=[np.zeros((2, 2), np.int64)] * 2,
            slide_ids=["a", "b"],
        )


def test_lists_of_different_lengths_are_refused():
    _, features, xy0 = make_pack()
    with pytest.raises(ValueError, match="3 features, 2 xy0, 3 slide_ids"):
        pack(features, xy0=xy0[:2], slide_ids=["a", "b", "c"])
    with pytest.raises(ValueError, match="one bag or more"):
        pack([], xy0=[], slide_ids=[])
    with pytest.raises(ValueError, match=r"targets are int64 \[3\]"):
        make_pack(targets=(0, 1))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("features", torch.zeros(67, 5, dtype=torch.int32), "floats"),
        ("features", torch.zeros(67), "floats"),
        ("features", torch.zeros(66, 5), r"xy0 is int64 \[66, 2\]"),
        ("cu_seqlens", torch.tensor([0, 3, 4, 67]), "int32"),
        ("cu_seqlens", torch.tensor([0, 3, 3, 67], dtype=torch.int32), "bag 1 of 3 has 0 rows"),
        ("cu_seqlens", torch.tensor([0, 3, 4, 66], dtype=torch.int32), "ends at 67"),
        ("cu_seqlens", torch.tensor([1, 3, 4, 67], dtype=torch.int32), "begins at 0"),
        ("cu_seqlens", torch.tensor([0, 67], dtype=torch.int32), r"B \+ 1"),
        ("xy0", torch.zeros(67, 2), "xy0 is int64"),
        ("targets", torch.zeros(3), "targets are int64"),
        ("targets", torch.zeros(3, dtype=torch.int64, device="meta"), "one device"),
    ],
)
def test_a_batch_that_contradicts_itself_is_refused(field, value, message):
    bags, _, _ = make_pack()
    with pytest.raises(ValueError, match=message):
        replace(bags, **{field: value})


def make_output():
    return BagOutput(logits=torch.zeros(1, 2), embedding=torch.zeros(1, 3))


def test_the_total_is_the_weighted_sum_of_the_terms():
    terms = {"bag": torch.tensor(2.0), "entropy": torch.tensor(3.0)}
    assert LossTerms(output=make_output(), terms=terms, weights={"entropy": 0.5}).total == 3.5


def test_terms_that_are_no_scalars_and_weights_of_no_term_are_refused():
    with pytest.raises(ValueError, match="a term is a scalar"):
        LossTerms(output=make_output(), terms={"bag": torch.zeros(2)})
    with pytest.raises(ValueError, match="weights name terms"):
        LossTerms(output=make_output(), terms={"bag": torch.tensor(1.0)}, weights={"bug": 1.0})
    with pytest.raises(ValueError, match="one or more"):
        LossTerms(output=make_output(), terms={})


def test_a_keep_mask_drops_its_share_and_follows_the_seed():
    def mask(seed, drop):
        step = StepContext(generator=torch.Generator().manual_seed(seed), progress=0.0)
        return step.keep_mask((1000, 63), drop=drop, device=torch.device("cpu"))

    for drop in (0.0, 0.1, 0.25, 77 / 256, 0.5, 0.999, 1 - 2**-16):
        share = 1 - mask(0, drop).double().mean()
        # Five standard deviations of a binomial share of 63 000 draws.
        assert abs(share - drop) <= 5 * (drop * (1 - drop) / 63_000) ** 0.5
    assert torch.equal(mask(3, 0.5), mask(3, 0.5))
    assert not torch.equal(mask(3, 0.5), mask(4, 0.5))


@pytest.mark.parametrize("drop", [-0.1, 1 - 2**-17, 1.0])
def test_a_keep_mask_of_no_share_or_of_all_is_refused(drop):
    step = StepContext(generator=torch.Generator().manual_seed(0), progress=0.0)
    with pytest.raises(ValueError, match=f"drop: got {drop}, wanted 0 or more and less than 1"):
        step.keep_mask((10,), drop=drop, device=torch.device("cpu"))


def test_progress_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        StepContext(generator=torch.Generator(), progress=1.5)
