"""DeLong's variance equals that of MLstatkit, of confidenceinterval, and of the definition."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from tests.evaluation.made import two_classes
from wsimil.evaluation.delong import delong_auroc, delong_difference
from wsimil.evaluation.patients import patient_means

# fmt: off
TARGETS = np.array([1, 0, 1, 1, 0, 0, 0, 0, 1, 0, 0, 0, 1, 1, 1, 0, 0, 1, 0, 1, 1, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1,
    0, 1, 1, 0, 0, 1, 0, 1, 1, 1, 1, 0, 1, 1, 1, 0, 0, 1, 1, 0, 1, 0, 1, 1, 0, 1, 0])
SCORES = np.array([.861, .349, .612, .413, .464, .438, .548, .37, .749, .861, .601, .36, .876, .705, .831, .649, .403,
    .283, .414, .825, .65, .608, .727, .612, .774, .835, .889, .762, .75, .905, .546, .501, .832, .287, .365, .529,
    .592, .616, .369, .132, .665, .693, .721, .842, .774, .774, .834, .476, .236, .559, .841, .849, .644, .856, .692,
    .32, .566, .612, .832, .181])
# fmt: on


def alone(count: int) -> list[str]:
    return [str(i) for i in range(count)]


@pytest.mark.parametrize("ties", [False, True])
def test_the_variance_is_that_of_all_pairs(ties: bool) -> None:
    cases = two_classes(90, ties=ties)
    positive, negative = (cases.probabilities[cases.targets == c] for c in (1, 0))
    wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    variance = wins.mean(axis=1).var(ddof=1) / len(positive) + wins.mean(axis=0).var(ddof=1) / len(negative)
    found = delong_auroc(cases.targets, cases.probabilities, alone(90))
    assert found.value == pytest.approx(wins.mean(), rel=1e-12)
    assert found.standard_error == pytest.approx(variance**0.5, rel=1e-12)


def test_the_interval_is_that_of_confidenceinterval() -> None:
    """Recorded from confidenceinterval 1.0.5, roc_auc_score, which reckons in float32."""
    found = delong_auroc(TARGETS, SCORES, alone(60))
    assert (found.value, found.low_plain, found.high_plain) == pytest.approx(
        (0.6802002, 0.5414592880643243, 0.8189411502443915), abs=1e-6
    )


@pytest.mark.parametrize("ties", [False, True])
def test_two_models_are_compared_as_mlstatkit_does(ties: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlstatkit = pytest.importorskip("MLstatkit")
    cases = two_classes(120, ties=ties)
    other = cases.probabilities + np.random.default_rng(1).normal(size=120) * 0.3
    other = other.round(1) if ties else other
    z, p = mlstatkit.Delong_test(cases.targets, cases.probabilities, other)[:2]
    found = delong_difference(cases.targets, cases.probabilities, other, alone(120))
    assert (abs(found.z), found.p_value) == pytest.approx((abs(z), p), rel=1e-9)
    back = delong_difference(cases.targets, other, cases.probabilities, alone(120))
    assert (back.difference, back.low, back.high) == pytest.approx((-found.difference, -found.high, -found.low))


def test_slides_of_one_patient_are_refused_and_can_be_taken_together() -> None:
    cases = two_classes(20)
    patients = [f"p{i // 2}" for i in range(20)]
    with pytest.raises(ValueError, match=r"10 patients have several, e\.g\. 'p0' 2.*patient_means"):
        delong_auroc(cases.targets, cases.probabilities, patients)
    targets = np.repeat([0, 1] * 5, 2)
    means = patient_means(cases.probabilities, targets, [f"p{9 - i // 2}" for i in range(20)])
    assert means.patients == tuple(f"p{9 - i}" for i in range(10))
    assert means.outputs == pytest.approx(cases.probabilities.reshape(10, 2).mean(axis=1))
    assert means.targets.tolist() == [0, 1] * 5
    assert delong_auroc(means.targets, means.outputs, means.patients).value is not None
    with pytest.raises(ValueError, match=r"1 patients have slides of different targets, e\.g\. 'p3'"):
        patient_means(cases.probabilities, np.where(np.arange(20) == 7, 1 - targets, targets), patients)


def test_what_has_no_variance_has_no_interval() -> None:
    split = delong_auroc(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9]), alone(4))
    assert (split.value, split.standard_error, split.low, split.low_plain) == (1.0, 0.0, None, None)
    assert delong_auroc(np.array([1, 1]), np.array([0.1, 0.2]), alone(2)).value is None
    one = delong_auroc(np.array([0, 0, 1]), np.array([0.1, 0.5, 0.3]), alone(3))
    assert (one.value, one.standard_error) == (0.5, None)
    other = delong_auroc(np.array([0, 1, 1]), np.array([0.2, 0.5, 0.1]), alone(3))
    assert (other.value, other.standard_error) == (0.5, None)
    cases = two_classes(30)
    same = delong_difference(cases.targets, cases.probabilities, cases.probabilities * 2, alone(30))
    assert (same.difference, same.p_value, same.low) == (0.0, None, None)


def test_plain_intervals_end_where_an_auroc_and_a_difference_do() -> None:
    targets, first, second = (
        np.array([0, 0, 0, 1, 1, 1]),
        np.array([6, 3, 0, 0, 8, 9.0]),
        np.array([6, 7, 5, 9, 8, 0.0]),
    )
    found, back = (delong_difference(targets, *pair, alone(6)) for pair in ((first, second), (second, first)))
    assert (found.high, back.low) == (1.0, -1.0)
    cases = two_classes(24, shift=2.5)
    assert delong_auroc(cases.targets, -cases.probabilities, alone(24)).low_plain == 0.0


def test_the_logit_interval_stays_inside_and_is_not_symmetric() -> None:
    cases = two_classes(24, shift=2.5)
    found = delong_auroc(cases.targets, cases.probabilities, alone(24))
    assert found.high_plain == 1.0
    assert found.low < found.low_plain < found.value < found.high < 1
    odds = [np.log(x / (1 - x)) for x in (found.low, found.value, found.high)]
    # The derivative of the logit is 1 / (x (1 - x)).
    reach = 1.959963984540054 * found.standard_error / (found.value * (1 - found.value))
    assert (odds[0], odds[2]) == pytest.approx((odds[1] - reach, odds[1] + reach), rel=1e-9)
