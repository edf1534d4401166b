"""What tiles say of the probability of a class, against the definition."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from wsimil.evaluation.calibration import Calibration
from wsimil.evaluation.class_odds import rest_of_odds, score_of_odds

CALIBRATED = {
    2: Calibration(kind="bias_corrected", classes=2, fitted_on="val", rows=9, temperature=3.0, shifts=(0.5, -0.5)),
    4: Calibration(
        kind="bias_corrected", classes=4, fitted_on="val", rows=9, temperature=0.4, shifts=(0.5, -0.5, 2.0, 0.0)
    ),
}


def made(classes: int, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Parts [9, C] of logits [C], and the bias [C] that they leave."""
    rng = np.random.default_rng(seed)
    parts, bias = rng.normal(size=(9, classes)), rng.normal(size=classes)
    return parts, parts.sum(axis=0) + bias, bias


def logit_of(logits: NDArray[np.float64], index: int, calibration: Calibration | None) -> float:
    """The logit of the probability of one class."""
    odds = np.exp(logits)
    p = odds / odds.sum() if calibration is None else calibration.apply(logits[None])[0]
    return float(np.log(p[index] / (1 - p[index])))


@pytest.mark.parametrize("classes", [2, 4])
def test_parts_and_their_rest_sum_to_the_log_odds(classes: int) -> None:
    parts, logits, bias = made(classes)
    for index in range(classes):
        found = score_of_odds("contribution", parts, logits, index).sum() + rest_of_odds(bias, logits, index)
        assert found == pytest.approx(logit_of(logits, index, None), rel=1e-12)


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("classes", [2, 4])
def test_a_part_is_how_much_the_logit_of_the_answer_moves_with_it(classes: int, calibrated: bool) -> None:
    parts, logits, _ = made(classes, seed=1)
    calibration = CALIBRATED[classes] if calibrated else None
    step = 1e-5
    for index in range(classes):
        for kind in ("contribution", "integrated_gradients", "gradient_x_input"):
            for own, part in zip(score_of_odds(kind, parts, logits, index, calibration), parts, strict=True):
                ends = [logit_of(logits + half * step * part, index, calibration) for half in (-1, 1)]
                assert own == pytest.approx((ends[1] - ends[0]) / (2 * step), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("classes", [2, 4])
def test_what_is_left_out_and_what_is_alone_are_exact(classes: int) -> None:
    scores, logits, _ = made(classes, seed=2)
    for calibration in (None, CALIBRATED[classes]):
        for index in range(classes):
            whole = logit_of(logits, index, calibration)
            lost = [whole - logit_of(logits - row, index, calibration) for row in scores]
            alone = [logit_of(row, index, calibration) for row in scores]
            np.testing.assert_allclose(score_of_odds("leave_one_out", scores, logits, index, calibration), lost)
            np.testing.assert_allclose(score_of_odds("single", scores, logits, index, calibration), alone)


def test_what_raises_all_logits_alike_speaks_for_no_class() -> None:
    _, logits, _ = made(4)
    alike = np.full((1, 4), 2.5)
    for kind in ("contribution", "leave_one_out"):
        for index in range(4):
            assert score_of_odds(kind, alike, logits, index) == pytest.approx([0.0], abs=1e-12)


def test_steps_move_nothing_and_a_tile_without_a_score_keeps_none() -> None:
    scores, logits, _ = made(2)
    scores[3] = np.nan
    curve = ((0.0, 0.1), (1.0, 0.8))
    steps = Calibration(kind="isotonic", classes=2, fitted_on="val", rows=9, curves=(curve,))
    for kind in ("single", "leave_one_out", "contribution"):
        found = score_of_odds(kind, scores, logits, 1, steps)
        assert np.array_equal(found, score_of_odds(kind, scores, logits, 1), equal_nan=True)
        assert np.isnan(found).tolist() == [row == 3 for row in range(9)]
