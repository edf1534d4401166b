"""FROC against an example worked out by hand, and what an alarm is."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from sklearn.metrics import average_precision_score, roc_auc_score

from wsimil.evaluation.faithfulness.froc import Alarms, alarms, froc, tile_ranking

ROW = np.stack([np.arange(6) * 100, np.zeros(6, np.int64)], axis=1)


def test_neighbors_of_a_higher_tile_are_silent() -> None:
    scores = np.array([1.0, 5.0, 4.0, 3.0, 0.5, 0.6])
    found = alarms(scores, ROW, 100, shapely.MultiPolygon())
    # 5 silences 1 and 4; 3 silences 0.5; 0.6 is two tiles away from 3.
    assert found.scores.tolist() == [5.0, 3.0, 0.6]
    assert found.finds.shape == (3, 0)
    corner = np.array([[0, 0], [100, 100], [250, 0]])
    assert alarms(np.array([2.0, 1.0, 0.0]), corner, 100, shapely.MultiPolygon()).scores.tolist() == [2.0, 0.0]
    near = np.array([[0, 0], [149, 0], [0, 150]])
    assert alarms(np.array([2.0, 1.0, 0.0]), near, 100, shapely.MultiPolygon()).scores.tolist() == [2.0, 0.0]


def test_an_alarm_finds_what_its_tile_overlaps() -> None:
    lesions = shapely.MultiPolygon(
        [shapely.box(190, 10, 210, 20), shapely.box(220, 10, 230, 20), shapely.box(300, 0, 310, 10)]
    )
    found = alarms(np.array([0.0, 1.0, 9.0, 1.0, 0.0, 0.5]), ROW, 100, lesions)
    assert found.scores.tolist() == [9.0, 0.5, 0.0]
    # The tile from 200 to 300 overlaps the first two lesions, and the third touches its edge alone.
    assert found.finds.tolist() == [[True, True, False], [False, False, False], [False, False, False]]


def test_sensitivity_at_false_alarms_a_slide_by_hand() -> None:
    first = Alarms(
        scores=np.array([0.9, 0.8, 0.7, 0.3]),
        finds=np.array([[True, False], [False, False], [True, False], [False, True]]),
    )
    second = Alarms(scores=np.array([0.95, 0.6, 0.5]), finds=np.array([[False], [True], [False]]))
    normal = Alarms(scores=np.array([0.85, 0.1]), finds=np.zeros((2, 0), np.bool_))
    empty = Alarms(scores=np.array([0.2]), finds=np.zeros((1, 0), np.bool_))
    found = froc([first, second, normal, empty])
    # Lesions are found at 0.9, 0.3 and 0.6. False alarms: 0.95, 0.85, 0.8, 0.5, 0.2, 0.1 on four slides.
    # >= 0.95: 0/3 at 1/4.  >= 0.9: 1/3 at 1/4.  >= 0.6: 2/3 at 3/4.  >= 0.3: 3/3 at 1.
    assert found is not None
    assert (found.slides, found.lesions) == (4, 3)
    assert found.at == pytest.approx((1 / 3, 1 / 3, 1, 1, 1, 1))
    assert found.mean == pytest.approx((2 / 3 + 4) / 6)
    assert found.false_alarms == pytest.approx((0.25, 0.25, 0.5, 0.75, 0.75, 0.75, 1.0, 1.0, 1.25, 1.5))
    assert found.sensitivity == pytest.approx((0, 1 / 3, 1 / 3, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 1, 1, 1))


def test_a_lesion_without_an_alarm_is_never_found() -> None:
    found = froc([Alarms(scores=np.array([0.4]), finds=np.array([[True, False]]))])
    assert found is not None
    assert found.at == (0.5,) * 6
    assert froc([Alarms(scores=np.array([0.4]), finds=np.zeros((1, 0), np.bool_))]) is None


def test_ranking_of_tiles_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    positive, scores = rng.random(80) < 0.2, rng.integers(9, size=80).astype(float)
    wanted = (roc_auc_score(positive, scores), average_precision_score(positive, scores))
    assert tile_ranking(positive, scores) == pytest.approx(wanted)
    assert np.isnan(tile_ranking(np.ones(3, np.bool_), np.arange(3.0))).all()
