"""Flipping on a model whose evidence is known, and against the plain recomputation of every step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.evaluation.faithfulness.toys import DIM, TASK, evidence_bag, flipped, linear_model, packed
from wsimil.config import load_config
from wsimil.errors import ConfigError, FeatureError
from wsimil.evaluation.faithfulness.cohort import means, verdict
from wsimil.evaluation.faithfulness.flipping import (
    FlipConfig,
    aupc,
    dropped_counts,
    kept,
    most_important_first,
    top_count,
)
from wsimil.evaluation.faithfulness.said import said_of
from wsimil.evaluation.faithfulness.slide import TileMap, flip
from wsimil.evaluation.faithfulness.subbags import SubBags
from wsimil.mil import registry
from wsimil.mil.batch import pack

QUICK = FlipConfig(shares=(0, 0.1, 0.25, 0.5, 0.75, 1), top=(0.05, 0.2), random_orders=10)


def test_shares_become_counts_and_one_tile_is_left() -> None:
    assert dropped_counts(40, (0, 0.05, 0.5, 1)).tolist() == [0, 2, 20, 39]
    assert dropped_counts(5, (0, 0.1, 0.3, 0.5, 1)).tolist() == [0, 1, 2, 3, 4]
    assert [top_count(n, 0.1) for n in (2, 10, 11, 100)] == [1, 1, 2, 10]
    assert (top_count(100, 0.07), top_count(4, 0.95)) == (7, 3), "0.07 of 100 is a little more than 7 in floating point"


def test_the_area_under_a_curve_is_its_mean_height() -> None:
    assert aupc((0, 0.5, 1), np.array([1.0, 0.0, 0.0])) == pytest.approx(0.25)
    assert aupc((0, 0.1, 1), np.array([[2.0, 2.0, 2.0], [1.0, 1.0, 0.0]])) == pytest.approx([2, 0.55])


def test_equal_scores_go_in_random_order_and_others_by_rank() -> None:
    scores = np.array([0.0, 3.0, 0.0, 0.0, -1.0, 0.0])
    orders = {tuple(most_important_first(scores, np.random.default_rng(seed)).tolist()) for seed in range(50)}
    assert len(orders) > 10
    assert all(order[0] == 1 and order[-1] == 4 for order in orders)
    with pytest.raises(ValueError, match="1 of 2 scores are not finite"):
        most_important_first(np.array([0, np.nan]), np.random.default_rng(0))
    assert kept(np.array([3, 0, 2, 1]), 1).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "key", ["shares=[0, 1]", "shares=[0.1, 0.5, 1]", "shares=[0, 0.5, 0.9]", "top=[0]", "random_orders=1"]
)
def test_a_config_that_cannot_be_meant_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=key.split("=")[0]):
        load_config(FlipConfig, overrides=[key])


def judged(values, *, bags: int = 12) -> list[dict[str, float]]:
    model = linear_model()
    found = [flipped(model, evidence_bag(i)[0], values, config=QUICK, seed=i) for i in range(bags)]
    return [dict(one.maps[0].numbers) for one in found]


def test_the_exact_split_is_far_above_random_and_its_reverse_far_below() -> None:
    patients = [f"p{i // 2}" for i in range(12)]
    exact, turned = (means(judged(values), patients, replicates=500) for values in (lambda v: v, lambda v: -v))
    for name, sign in (("margin", 1), ("margin_logit", 1)):
        assert exact[name].value > 0.5
        assert turned[name].value < -0.5
        assert exact[name].value * sign > 0
    assert verdict(exact["margin"], patients=6).beats_random is True
    assert verdict(turned["margin"], patients=6).beats_random is False
    assert exact["top_0.2"].value > 0.95 > exact["whole"].value > 0.5 > exact["without_top_0.2"].value
    assert exact["completeness_gap"].value < 1e-5


def test_a_random_map_is_not_told_from_random_orders() -> None:
    rng = np.random.default_rng(3)
    rows = judged(lambda v: rng.normal(size=len(v)), bags=30)
    found = means(rows, [f"p{i}" for i in range(30)], replicates=500)
    assert found["margin"].low < 0 < found["margin"].high
    assert abs(found["random_srg"].value) < 3 * found["random_spread"].value / np.sqrt(30 * 10)
    assert verdict(found["margin"], patients=30).beats_random is False


@pytest.mark.parametrize("method", ["abmil", "transmil"])
def test_curves_are_those_of_every_step_computed_by_itself(method: str) -> None:
    model = registry.build(
        method, {"hidden_dim": 16} if method == "transmil" else {}, in_dim=DIM, num_classes=2
    ).double()
    bag, _ = evidence_bag(1, tiles=23)
    bag = bag.to(dtype=torch.float64)
    scores = np.random.default_rng(1).permutation(23).astype(np.float64)
    parts = SubBags(model, bag)
    logits = parts.logits([np.arange(23)])
    said = said_of(TASK, TASK.values(logits)[0], logits[0])
    one = TileMap(score="made", values=scores, total=-100.0)

    def calm(logits: np.ndarray) -> np.ndarray:
        return TASK.values(logits / 3)

    found = flip(parts, [one], said, task=TASK, values_of=calm, config=QUICK, rng=np.random.default_rng(0))
    order = np.argsort(-scores)

    def asked(rows: np.ndarray) -> np.ndarray:
        alone = pack([bag.features[np.sort(rows)]], xy0=[bag.xy0[np.sort(rows)]], slide_ids=["alone"])
        with torch.no_grad():
            return model(alone).logits.numpy()

    for reading, curves in ((order, found.maps[0].most_first), (order[::-1], found.maps[0].least_first)):
        for step, dropped in enumerate([0, 2, 6, 12, 17, 22]):
            wanted = asked(reading[dropped:])
            odds = wanted[0, said.output] - wanted[0, 1 - said.output]
            assert curves.logit[step] == pytest.approx(odds, rel=1e-8, abs=1e-9)
            assert curves.uncalibrated[step] == pytest.approx(TASK.values(wanted)[0, said.output], rel=1e-8)
            assert curves.strength[step] == pytest.approx(calm(wanted)[0, said.output], rel=1e-8)
    numbers = found.maps[0].numbers
    for tail, name in (("", "strength"), ("_uncalibrated", "uncalibrated"), ("_logit", "logit")):
        least, most = (getattr(curves, name) for curves in (found.maps[0].least_first, found.maps[0].most_first))
        assert numbers[f"srg{tail}"] == pytest.approx(float(aupc(QUICK.shares, least) - aupc(QUICK.shares, most)))
        areas = aupc(QUICK.shares, getattr(found.random, name))
        gaps = areas[:, 1] - areas[:, 0]
        assert numbers[f"random_srg{tail}"] == pytest.approx(gaps.mean())
        assert numbers[f"random_spread{tail}"] == pytest.approx(gaps.std(ddof=1))
        assert numbers[f"random_aupc{tail}"] == pytest.approx(areas.mean())
        assert numbers[f"margin{tail}"] == pytest.approx(numbers[f"srg{tail}"] - gaps.mean(), rel=1e-9, abs=1e-12)
    rng = np.random.default_rng(0)
    drawn = [rng.permutation(23) for _ in range(10)]
    for share, top in ((0.05, 2), (0.2, 5)):
        for name, orders in (("top", [order]), ("random", drawn)):
            alone, without = (
                np.mean([calm(asked(rows))[0, said.output] for rows in parts])
                for parts in ([own[:top] for own in orders], [own[top:] for own in orders])
            )
            assert numbers[f"{name}_{share}"] == pytest.approx(alone, rel=1e-8)
            assert numbers[f"without_{name}_{share}"] == pytest.approx(without, rel=1e-8)
    assert numbers["completeness_gap"] == pytest.approx(100 + numbers["whole_logit"])
    assert found.dropped.tolist() == [0, 2, 6, 12, 17, 22]
    assert found.random.strength.shape == (10, 2, 6)


def test_a_slide_of_too_few_tiles_is_refused() -> None:
    bag = packed(np.ones((3, DIM), np.float32))
    with pytest.raises(FeatureError, match="3 tiles are too few"):
        flipped(linear_model(), bag, lambda v: v, config=QUICK)


def test_a_map_of_other_tiles_is_refused() -> None:
    with pytest.raises(ValueError, match=r"is of \[2\] tiles, the bag has 60"):
        flipped(linear_model(), evidence_bag(0)[0], lambda v: v[:2], config=QUICK)
