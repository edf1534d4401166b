"""Bags come in order, ahead of their use, and few at a time."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsimil.errors import StoreError
from wsimil.training.loading import BagLoader, Instances
from wsimil.training.sampling import steps_of


class Counted:
    """Bags that know how many of them are alive."""

    def __init__(self) -> None:
        self.alive = self.most = 0
        self.loaded: list[str] = []
        self.lock = threading.Lock()

    def load(self, slide_id: str) -> Instances:
        if slide_id == "bad":
            raise StoreError("slide 'bad': cannot be read")
        features = np.full((4, 3), float(slide_id), np.float32)
        with self.lock:
            self.alive += 1
            self.most = max(self.most, self.alive)
            self.loaded.append(slide_id)
        weakref.finalize(features, self._gone)
        return Instances(features=features, xy0=np.zeros((4, 2), np.int64))

    def count(self, slide_id: str) -> int:
        return 4

    def _gone(self) -> None:
        with self.lock:
            self.alive -= 1


def numbers(step: Sequence[Instances]) -> list[int]:
    return [int(bag.features[0, 0]) for bag in step]


@pytest.mark.parametrize("ahead", [0, 1, 2, 5])
def test_bags_come_in_order_whatever_is_read_ahead(ahead: int) -> None:
    steps = [["3"], ["1", "4"], ["1"], ["5", "9", "2"]]
    with BagLoader(Counted(), ahead=ahead, cache_gb=0) as loader:
        assert [numbers(step) for step in loader.stream(steps)] == [[3], [1, 4], [1], [5, 9, 2]]


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_at_most_two_bags_live_beyond_those_read_ahead(ahead: int) -> None:
    source = Counted()
    gc.disable()
    try:
        with BagLoader(source, ahead=ahead, cache_gb=0) as loader:
            for step in loader.stream([[str(i)] for i in range(40)]):
                assert len(step) == 1
    finally:
        gc.enable()
    assert len(source.loaded) == 40
    assert source.most <= ahead + 2


def test_a_cached_bag_is_read_once() -> None:
    source = Counted()
    with BagLoader(source, ahead=2, cache_gb=1) as loader:
        for _ in range(3):
            assert [numbers(step) for step in loader.stream([["1"], ["2"]])] == [[1], [2]]
    assert sorted(source.loaded) == ["1", "2"]


def test_bags_beyond_the_cache_are_read_again() -> None:
    source = Counted()
    with BagLoader(source, ahead=0, cache_gb=0) as loader:
        for _ in range(3):
            list(loader.stream([["1"]]))
    assert source.loaded == ["1", "1", "1"]


@pytest.mark.parametrize("ahead", [0, 2])
def test_a_bag_that_cannot_be_read_stops_its_own_step_and_no_earlier_one(ahead: int) -> None:
    with BagLoader(Counted(), ahead=ahead, cache_gb=0) as loader:
        stream = loader.stream([["1"], ["2"], ["bad"]])
        assert [numbers(next(stream)), numbers(next(stream))] == [[1], [2]]
        with pytest.raises(StoreError, match="'bad'"):
            next(stream)


def test_leaving_early_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    with BagLoader(Counted(), ahead=3, cache_gb=0) as loader:
        next(loader.stream([[str(i)] for i in range(9)]))
    assert threading.active_count() == before


@given(
    counts=st.lists(st.integers(1, 50), min_size=1, max_size=30),
    bags=st.integers(1, 8),
    budget=st.integers(1, 80),
)
def test_steps_hold_every_bag_once_in_order_within_the_budget(counts: list[int], bags: int, budget: int) -> None:
    order = list(range(len(counts)))[::-1]
    steps = steps_of(order, bags=bags, instances=budget, counts=counts)
    assert [index for step in steps for index in step] == order
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        held = sum(counts[index] for index in step)
        assert len(step) <= bags
        assert held <= budget or len(step) == 1
        if following is not None:  # no step ends before it must
            assert len(step) == bags or held + counts[following[0]] > budget
