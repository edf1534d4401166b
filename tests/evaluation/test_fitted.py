"""Calibration, thresholds and conformal quantiles: fitted off the test split, frozen, and the same after a round trip."""

from __future__ import annotations

import json
from contextlib import suppress

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from tests.evaluation.made import two_classes
from wsimil.errors import ConfigError, ModelError
from wsimil.evaluation.bootstrap import estimates
from wsimil.evaluation.calibration import Calibration, fit_bias_corrected, fit_isotonic, fit_temperature
from wsimil.evaluation.conformal import Conformal, ConformalCases, fit_conformal
from wsimil.evaluation.threshold import (
    Threshold,
    cost_threshold,
    sensitivity_threshold,
    specificity_threshold,
    youden_threshold,
)


def logits_of(count: int, classes: int, *, seed: int = 0, heat: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are `heat` times too sure, and truths."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(size=(count, classes)) * 1.5
    targets = (softmax(honest, axis=1).cumsum(axis=1) > rng.random((count, 1))).argmax(axis=1)
    return honest * heat, targets


def alone(count: int) -> list[str]:
    return [str(i) for i in range(count)]


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("heat", [0.01, 3.0, 400.0])
def test_the_temperature_is_that_of_the_lowest_loss(classes: int, heat: float) -> None:
    logits, targets = logits_of(500, classes, heat=heat)
    found = fit_temperature(logits, targets, fitted_on="val")

    def loss(log_t: float) -> float:
        return -log_softmax(logits / np.exp(log_t), axis=1)[np.arange(500), targets].mean()

    best = minimize_scalar(
        loss, bounds=(np.log(heat) - 2, np.log(heat) + 2), method="bounded", options={"xatol": 1e-10}
    )
    assert np.log(found.temperature) == pytest.approx(
        best.x, abs=1e-6
    )  # a minimum is flat: half the digits of its value
    gradient = ((softmax(logits / found.temperature, axis=1) - np.eye(classes)[targets]) * logits).sum() / heat
    assert abs(gradient) < 1e-9
    assert found.temperature == pytest.approx(heat, rel=0.25)


def test_the_temperature_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3))
    targets = (x @ np.array([[1.0, -1, 0], [0, 1, -1], [0.5, 0, 1]]) + rng.gumbel(size=(400, 3))).argmax(axis=1)
    model = LogisticRegression(C=100.0).fit(x[:50], targets[:50])
    theirs = CalibratedClassifierCV(FrozenEstimator(model), method="temperature").fit(x[50:], targets[50:])
    logits = model.decision_function(x[50:])
    ours = fit_temperature(logits, targets[50:], fitted_on="val")
    assert ours.apply(logits) == pytest.approx(theirs.predict_proba(x[50:]), abs=1e-5)  # it stops its search there


@pytest.mark.parametrize("heat", [0.01, 3.0, 400.0])
def test_two_classes_have_the_sigmoid_of_scikit_learn(heat: float) -> None:
    logits, targets = logits_of(300, 2, heat=heat)
    z = logits[:, 1] - logits[:, 0] + 2 * heat
    found = fit_bias_corrected(np.stack([-z / 2, z / 2], axis=1), targets, fitted_on="val")
    assert found.temperature == pytest.approx(heat, rel=0.25)
    assert found.shifts[1] - found.shifts[0] == pytest.approx(-2, abs=0.5)
    # Platt's targets by weights: each row stands there once as either class.
    counts = np.bincount(targets)
    own = (counts[targets] + 1) / (counts[targets] + 2)
    weights = np.concatenate([np.where(targets == 1, own, 1 - own), np.where(targets == 1, 1 - own, own)])
    twice = np.concatenate([z, z])[:, None] / heat
    theirs = LogisticRegression(C=np.inf, tol=1e-12, max_iter=1000, solver="newton-cholesky").fit(
        twice, np.repeat([1, 0], 300), sample_weight=weights
    )
    logits = np.stack([-z / 2, z / 2], axis=1)
    assert found.apply(logits) == pytest.approx(theirs.predict_proba(z[:, None] / heat), abs=1e-9)

    margin = LogisticRegression().fit(z[:, None], targets)
    margin.coef_[:], margin.intercept_[:] = 1 / heat, 0.0
    platt = CalibratedClassifierCV(FrozenEstimator(margin), method="sigmoid").fit(z[:, None], targets)
    assert found.apply(logits) == pytest.approx(platt.predict_proba(z[:, None]), abs=1e-5)  # it stops its search there


def test_shifts_of_several_classes_are_at_the_lowest_loss() -> None:
    logits, targets = logits_of(400, 4, heat=2.0)
    moved = logits + np.array([3.0, 0.0, -4.0, 1.0])
    found = fit_bias_corrected(moved, targets, fitted_on="val")
    counts = np.bincount(targets, minlength=4)
    wanted = np.full((400, 4), 1.0) / (counts[targets] + 4)[:, None]
    wanted[np.arange(400), targets] *= counts[targets] + 1
    wanted /= wanted.sum(axis=1, keepdims=True)
    away = found.apply(moved) - wanted
    assert np.abs(away.mean(axis=0)).max() < 1e-8
    assert abs((away * moved).mean()) < 1e-8
    assert sum(found.shifts) == pytest.approx(0, abs=1e-12)
    plain = fit_temperature(moved, targets, fitted_on="val")
    own = (np.arange(400), targets)
    assert np.log(found.apply(moved)[own]).mean() > np.log(plain.apply(moved)[own]).mean() + 0.1


@pytest.mark.parametrize("lean", [1e4, 1e8, -1e8])
def test_what_all_logits_have_in_common_is_taken_out(lean: float) -> None:
    logits, targets = logits_of(300, 2)
    away = np.array([0.0, lean])
    found, plain = (fit_bias_corrected(x, targets, fitted_on="val") for x in (logits + away, logits))
    assert found.apply(logits + away) == pytest.approx(plain.apply(logits), abs=1e-6)


def test_a_kind_that_is_not_known_is_refused_and_so_is_one_of_two_kinds() -> None:
    facts = {"classes": 2, "fitted_on": "val", "rows": 9, "temperature": 2.0, "curves": []}
    assert Calibration.from_json({"kind": "temperature", **facts}).shifts == ()  # as files have it that know no shifts
    with pytest.raises(ModelError, match="'spline' is not known"):
        Calibration.from_json({"kind": "spline", **facts})
    with pytest.raises(ModelError, match="incomplete"):
        Calibration.from_json({"kind": "isotonic", **facts, "curves": [[[0.0, 0.0], [1.0, 1.0]]]})


def test_rows_that_are_all_right_have_a_calibration_that_is_not_sure() -> None:
    targets = np.arange(20) % 2
    z = np.where(targets == 1, 9.0, 3.0)  # ranked right, and all said to be class 1
    found = fit_bias_corrected(np.stack([-z, z], axis=1), targets, fitted_on="val")
    said = found.apply(np.stack([-z, z], axis=1))[:, 1]
    assert said == pytest.approx(np.where(targets == 1, 11 / 12, 1 / 12), abs=1e-9)


@pytest.mark.parametrize("classes", [2, 3])
def test_isotonic_is_that_of_scikit_learn(classes: int) -> None:
    logits, targets = logits_of(300, classes)
    fresh, _ = logits_of(200, classes, seed=1)
    found = fit_isotonic(logits, targets, fitted_on="val").apply(fresh)
    curves = [
        IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(softmax(logits, axis=1)[:, c], targets == c)
        for c in range(classes)
    ]
    expected = np.stack([curve.predict(softmax(fresh, axis=1)[:, c]) for c, curve in enumerate(curves)], axis=1)
    if classes == 2:
        assert found[:, 1] == pytest.approx(expected[:, 1], abs=1e-12)
    else:
        total = expected.sum(axis=1, keepdims=True)
        assert found == pytest.approx(np.where(total > 0, expected / np.maximum(total, 1e-300), 1 / 3), abs=1e-12)
    assert found.sum(axis=1) == pytest.approx(1, abs=1e-12)


def test_a_calibration_is_the_same_after_json() -> None:
    logits, targets = logits_of(80, 3)
    for fit in (fit_temperature, fit_bias_corrected, fit_isotonic):
        made = fit(logits, targets, fitted_on="val")
        again = Calibration.from_json(json.loads(json.dumps(made.to_json(), allow_nan=False)))
        assert again == made
        assert (again.apply(logits) == made.apply(logits)).all()


def test_a_row_that_no_isotonic_curve_knows_is_spread_evenly() -> None:
    nothing = ((0.0, 0.0), (1.0, 0.0))
    made = Calibration(kind="isotonic", classes=3, fitted_on="val", rows=9, curves=(nothing, nothing, nothing))
    assert made.apply(np.array([[1.0, 2.0, 3.0]])) == pytest.approx(np.full((1, 3), 1 / 3))
    with pytest.raises(ModelError, match="does not rise"):
        Calibration(kind="isotonic", classes=2, fitted_on="val", rows=9, curves=(((0.0, 0.5), (1.0, 0.2)),))
    with pytest.raises(ModelError, match="incomplete"):
        Calibration(kind="bias_corrected", classes=3, fitted_on="val", rows=9, temperature=1.0, shifts=(0.5, -0.5))


@pytest.mark.parametrize(
    "facts",
    [
        {"kind": "temperature", "temperature": 0.0},
        {"kind": "temperature", "temperature": np.inf},
        {"kind": "temperature", "temperature": 1.0, "classes": 1},
        {"kind": "bias_corrected", "temperature": 1.0, "shifts": (0.0, np.nan)},
        {"kind": "isotonic", "curves": (((0.2, 0.1), (0.2, 0.3)),)},
        {"kind": "isotonic", "curves": (((0.2, 0.1), (0.4, 1.1)),)},
        {"kind": "isotonic", "curves": ((),)},
    ],
)
def test_a_calibration_that_could_not_have_been_fitted_is_refused(facts: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="is incomplete or does not rise"):
        Calibration(**{"classes": 2, "fitted_on": "val", "rows": 9, **facts})


def test_no_temperature_is_made_up() -> None:
    logits, targets = logits_of(50, 3)
    with pytest.raises(ModelError, match="no more than chance"):
        fit_temperature(-logits, targets, fitted_on="val")
    two, of_two = logits_of(50, 2)
    for nothing in (-two, 0 * two):
        with pytest.raises(ModelError, match="no more than chance"):
            fit_bias_corrected(nothing, of_two, fitted_on="val")
    with pytest.raises(ModelError, match="all 50 rows are decided right"):
        fit_temperature(np.eye(3)[targets] * 4, targets, fitted_on="val")
    with pytest.raises(ConfigError, match="all 3 classes"):
        fit_temperature(logits, np.zeros(50, np.int64), fitted_on="val")


def test_a_model_that_gives_all_rows_the_same_logits_has_no_temperature() -> None:
    """Of classes that are even, rounding said that it was better than chance, and the temperature was 1 / 0."""
    for rows in range(1, 30):
        targets = np.tile([0, 1, 2], rows)
        with pytest.raises(ModelError, match="no more than chance"):
            fit_temperature(np.tile([0.7, 0.1, 0.3], (3 * rows, 1)), targets, fitted_on="val")


def test_what_rounding_leaves_of_logits_that_are_all_the_same_is_no_signal() -> None:
    """It was blown up to a temperature of 1e-16 and shifts of 1e15, with which any other row had a probability of 0 or 1."""
    for rows in range(10, 60):
        targets = (np.arange(rows) % 3 == 0).astype(np.int64)
        with pytest.raises(ModelError, match="no more than chance"):
            fit_bias_corrected(np.tile([0.7, 0.1], (rows, 1)), targets, fitted_on="val")


def test_what_float32_leaves_of_one_answer_over_bags_of_many_sizes_is_no_signal() -> None:
    """As of a model whose units are all dead: each bag's mean of one and the same logits is rounded in its own way."""
    rng, told = np.random.default_rng(0), []
    for _ in range(20):
        one = np.float32(rng.normal(size=2))
        logits = np.stack([np.tile(one, (n, 1)).mean(axis=0) for n in rng.integers(20, 2000, 60)]).astype(np.float64)
        targets = (rng.random(60) < 0.5).astype(np.int64)
        with pytest.raises(ModelError, match="no more than chance"):
            fit_bias_corrected(logits, targets, fitted_on="val")
        with suppress(ModelError):
            told.append(fit_temperature(logits, targets, fitted_on="val").temperature)
    assert told
    assert min(told) > 1e-3


@pytest.mark.parametrize("split", ["test", "external", ""])
def test_nothing_is_fitted_on_the_test_split(split: str) -> None:
    cases = two_classes(40)
    logits, targets = logits_of(40, 2)
    for attempt in (
        lambda: fit_temperature(logits, targets, fitted_on=split),
        lambda: fit_bias_corrected(logits, targets, fitted_on=split),
        lambda: fit_isotonic(logits, targets, fitted_on=split),
        lambda: youden_threshold(cases.targets, cases.probabilities, fitted_on=split),
        lambda: fit_conformal(targets, softmax(logits, axis=1), alone(40), kind="lac", coverage=0.9, fitted_on=split),
    ):
        with pytest.raises(ConfigError, match="cannot be judged on them"):
            attempt()


@pytest.mark.parametrize("ties", [False, True])
def test_thresholds_keep_their_rule_among_all_that_there_are(ties: bool) -> None:
    cases = two_classes(80, ties=ties)
    truth, p = cases.targets, cases.probabilities

    def reached(value: float) -> tuple[float, float]:
        return (p[truth == 1] >= value).mean(), (p[truth == 0] < value).mean()

    every = [reached(value) for value in [*np.unique(p), 2.0]]
    youden = youden_threshold(truth, p, fitted_on="val")
    assert sum(reached(youden.value)) == pytest.approx(max(a + b for a, b in every))
    held = sensitivity_threshold(truth, p, at_least=0.9, fitted_on="val")
    assert held.specificity == pytest.approx(max(b for a, b in every if a >= 0.9))
    held = specificity_threshold(truth, p, at_least=0.8, fitted_on="val")
    assert held.sensitivity == pytest.approx(max(a for a, b in every if b >= 0.8))
    cheap = cost_threshold(truth, p, false_negative=5, false_positive=1, fitted_on="val")
    n1, n0 = truth.sum(), (1 - truth).sum()
    assert 5 * (1 - cheap.sensitivity) * n1 + (1 - cheap.specificity) * n0 == pytest.approx(
        min(5 * (1 - a) * n1 + (1 - b) * n0 for a, b in every)
    )
    for one in (youden, held, cheap):
        assert reached(one.value) == pytest.approx((one.sensitivity, one.specificity))
        assert Threshold.from_json(json.loads(json.dumps(one.to_json()))) == one
        assert one.value not in p


def test_of_thresholds_that_are_as_good_the_lowest_misses_fewest() -> None:
    truth, p = np.array([0, 1, 0, 1]), np.array([0.1, 0.3, 0.5, 0.7])
    youden = youden_threshold(truth, p, fitted_on="val")
    cheap = cost_threshold(truth, p, false_negative=0.3, false_positive=0.3, fitted_on="val")
    for one in (youden, cheap):
        assert one.value == pytest.approx(0.2)
        assert (one.sensitivity, one.specificity) == (1.0, 0.5)
    with pytest.raises(ConfigError, match="above 0"):
        cost_threshold(truth, p, false_negative=0, false_positive=1, fitted_on="val")
    with pytest.raises(ConfigError, match="above 0"):
        cost_threshold(truth, p, false_negative=1, false_positive=-1, fitted_on="val")


def test_a_share_that_rows_reach_exactly_is_enough() -> None:
    """0.55 of 100 is a little more than 55 in floating point, and three times 0.1 a little more than 0.3."""
    truth = np.repeat([1, 0], 100)
    p = np.tile(np.arange(100), 2) / 100
    held = sensitivity_threshold(truth, p, at_least=0.55, fitted_on="val")
    assert held.sensitivity == 0.55
    held = specificity_threshold(truth, p, at_least=0.55, fitted_on="val")
    assert held.specificity == pytest.approx(0.55)
    p = np.array([0.9, 0.5, 0.4, 0.3, 0.2, 0.1])
    cheap = cost_threshold(np.array([1, 0, 0, 0, 1, 0]), p, false_negative=0.3, false_positive=0.1, fitted_on="val")
    assert cheap.value == pytest.approx(0.15)


@pytest.mark.parametrize("above", [1 - 2**-53, 1.0, 5e-324])
def test_a_threshold_parts_probabilities_that_no_number_lies_between(above: float) -> None:
    """Logits beyond 36 end there: the middle was rounded to the lower one, and both were decided for class 1."""
    p = np.array([np.nextafter(above, 0), above])
    found = youden_threshold(np.array([0, 1]), p, fitted_on="val")
    assert (p >= found.value).tolist() == [False, True]


@pytest.mark.parametrize("highest", [0.8, 1.0])
def test_a_threshold_that_decides_for_none_lies_above_all_probabilities(highest: float) -> None:
    p = np.array([0.2, highest])
    found = specificity_threshold(np.array([1, 0]), p, at_least=1.0, fitted_on="val")
    assert (found.sensitivity, found.specificity) == (0, 1)
    assert found.value > highest


def test_a_threshold_of_one_class_is_refused() -> None:
    with pytest.raises(ConfigError, match="both classes"):
        youden_threshold(np.ones(3, np.int64), np.array([0.1, 0.2, 0.3]), fitted_on="val")


@pytest.mark.parametrize("kind", ["lac", "aps"])
@pytest.mark.parametrize("per_class", [False, True])
def test_conformal_sets_hold_the_truth_as_often_as_they_say(kind: str, per_class: bool) -> None:
    held, right = [], []
    for trial in range(300):
        logits, targets = logits_of(150, 3, seed=trial)
        p = softmax(logits, axis=1)
        made = fit_conformal(
            targets[:100], p[:100], alone(100), kind=kind, coverage=0.8, fitted_on="val", per_class=per_class
        )
        held.append(made.sets(p[100:])[np.arange(50), targets[100:]].mean())
        right.append((p[100:].argmax(axis=1) == targets[100:]).mean())
    error = 4 * np.std(held) / np.sqrt(300)
    # Coverage is in [0.8, 0.8 + 1 / (n + 1)] with n rows a quantile (100, or some 30 a class, never fewer than 10).
    assert np.mean(right) < 0.8
    assert 0.8 - error <= np.mean(held) <= 0.8 + 1 / (11 if per_class else 101) + error


def test_conformal_quantiles_survive_json_and_a_class_of_few_is_in_every_set() -> None:
    p = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]])
    made = fit_conformal(np.array([0, 0, 1]), p, alone(3), kind="aps", coverage=0.6, fitted_on="val", per_class=True)
    assert made.quantiles == (0.0, None)
    assert made.sets(p).tolist() == [[True, True], [True, True], [False, True]]
    assert Conformal.from_json(json.loads(json.dumps(made.to_json(), allow_nan=False))) == made
    with pytest.raises(ValueError, match="takes rows as independent"):
        fit_conformal(np.array([0, 0, 1]), p, ["a", "a", "b"], kind="lac", coverage=0.5, fitted_on="val")


def test_a_coverage_that_rows_reach_exactly_is_enough() -> None:
    """0.55 of 100 is a little more than 55 in floating point: the quantile was that of the 56th row of 99."""
    strange = np.arange(99) / 100
    p = np.stack([1 - strange, strange], axis=1)
    made = fit_conformal(np.zeros(99, np.int64), p, alone(99), kind="lac", coverage=0.55, fitted_on="val")
    assert made.quantiles == (pytest.approx(0.54),)
    with pytest.raises(ValueError, match="of 2 classes, got probabilities of 3"):
        made.sets(np.full((1, 3), 1 / 3))


def test_sets_are_counted_by_their_size_and_by_the_class_that_they_should_hold() -> None:
    sets = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 0], [1, 0, 1]], bool)
    cases = ConformalCases(targets=np.array([0, 1, 1, 0, 0]), sets=sets)
    assert cases.values() == {
        "coverage": pytest.approx(3 / 5),
        "mean_set_size": pytest.approx(6 / 5),
        "share_single": pytest.approx(2 / 5),
        "share_empty": pytest.approx(1 / 5),
        "coverage:0": pytest.approx(2 / 3),
        "coverage:1": pytest.approx(1 / 2),
        "coverage:2": None,
    }
    assert cases.strata.tolist() == [2, 1, 1, 2, 2]
    assert cases.counts == {"0": 3, "1": 2, "2": 0}


def test_measured_coverage_has_an_interval_over_patients() -> None:
    logits, targets = logits_of(200, 3)
    p = softmax(logits, axis=1)
    made = fit_conformal(targets[:100], p[:100], alone(100), kind="lac", coverage=0.9, fitted_on="val")
    cases = ConformalCases(targets=targets[100:], sets=made.sets(p[100:]))
    found = estimates(cases, alone(100))
    held = made.sets(p[100:])[np.arange(100), targets[100:]]
    assert found["coverage"].value == pytest.approx(held.mean())
    assert found["mean_set_size"].low < found["mean_set_size"].value < found["mean_set_size"].high
    exact = stats.binomtest(int(held.sum()), 100).proportion_ci()
    # The strata fix what the classes differ in, and the exact interval is wide by construction.
    assert exact.low - 0.01 < found["coverage"].low < found["coverage"].value
