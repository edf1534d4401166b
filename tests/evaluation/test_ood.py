"""New slides of the same kind are flagged as often as stated; shifted ones are found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

from wsimil.errors import ConfigError
from wsimil.evaluation.ood import OodReference, fit_ood


def slides(count: int, *, seed: int, dim: int = 40, shift: float = 0.0) -> np.ndarray:
    """Mean features that vary in few directions, as those of one encoder do."""
    rng = np.random.default_rng(seed)
    loadings = np.random.default_rng(99).normal(size=(8, dim))
    return rng.normal(size=(count, 8)) @ loadings + rng.normal(size=(count, dim)) * 0.3 + shift


def names(count: int) -> list[str]:
    return [f"p{i}" for i in range(count)]


@pytest.mark.parametrize("shape", [(120, 40), (60, 150)])
def test_the_distance_is_that_of_scikit_learn(shape: tuple[int, int]) -> None:
    count, dim = shape
    training, fresh = slides(count, seed=0, dim=dim), slides(20, seed=1, dim=dim, shift=0.5)
    found = fit_ood(training, names(count), false_flags=0.1)
    theirs = np.sqrt(LedoitWolf().fit(training).mahalanobis(fresh))
    assert found.distances(fresh) == pytest.approx(theirs, rel=1e-4)  # kept in float32
    assert found.axes.shape == (min(count - 1, dim), dim)


def test_the_distance_to_neighbors_is_that_of_scikit_learn() -> None:
    training, fresh = slides(60, seed=0), slides(20, seed=1, shift=0.5)
    found = fit_ood(training, [f"p{i // 2}" for i in range(60)], kind="knn", neighbors=3, false_flags=1 / 61)
    theirs = NearestNeighbors(n_neighbors=3).fit(normalize(training))
    assert found.distances(fresh) == pytest.approx(theirs.kneighbors(normalize(fresh))[0][:, 2], rel=1e-4)
    held_out = []
    for patient in range(30):
        own = np.arange(60) // 2 == patient
        rest = NearestNeighbors(n_neighbors=3).fit(normalize(training[~own]))
        held_out += list(rest.kneighbors(normalize(training[own]))[0][:, 2])
    assert found.threshold == pytest.approx(max(held_out), rel=1e-9)


def test_the_threshold_is_of_references_that_never_saw_the_patient() -> None:
    training = slides(30, seed=0)
    patients = [f"p{i // 2}" for i in range(30)]
    # All 30 slides: the threshold is the largest distance of all that were held out.
    found = fit_ood(training, patients, false_flags=1 / 31)
    shrinkage = LedoitWolf().fit(training).shrinkage_
    held_out = []
    for patient in range(15):
        own = np.arange(30) // 2 == patient
        rest = training[~own]
        covariance = np.cov(rest.T, bias=True)
        whole = np.cov(training.T, bias=True)
        # The shrinkage is that of all slides; everything else is made without the patient.
        shrunk = (1 - shrinkage) * covariance + shrinkage * np.trace(whole) / 40 * np.eye(40)
        off = training[own] - rest.mean(axis=0)
        held_out += list(np.sqrt((off @ np.linalg.inv(shrunk) * off).sum(axis=1)))
    assert found.threshold == pytest.approx(max(held_out), rel=1e-9)
    assert found.threshold > found.distances(training).max()


def test_features_that_look_like_noise_have_distances_in_units_of_the_mean_variance() -> None:
    """Ledoit and Wolf shrink all of a covariance that is no more than noise, which once was a division by zero."""
    training = np.kron(np.ones((6, 1)), np.vstack([np.eye(5), -np.eye(5)]))
    assert LedoitWolf().fit(training).shrinkage_ == 1.0
    found = fit_ood(training, names(60), false_flags=0.1)
    fresh = np.full((1, 5), 2.0)
    assert found.distances(fresh) == pytest.approx([np.sqrt(20 / training.var())], rel=1e-4)
    rest = 59
    assert found.threshold == pytest.approx((1 + 1 / rest) / np.sqrt(training.var()), rel=1e-9)


@pytest.mark.parametrize("kind", ["mahalanobis", "knn"])
@pytest.mark.parametrize("shape", [(120, 40), (80, 200)])
def test_as_many_new_slides_are_flagged_as_stated_and_shifted_ones_are_found(kind: str, shape: tuple[int, int]) -> None:
    count, dim = shape
    rates = []
    for trial in range(40):
        found = fit_ood(slides(count, seed=trial, dim=dim), names(count), kind=kind, false_flags=0.1)
        rates.append(found.flags(slides(200, seed=1000 + trial, dim=dim)).mean())
    error = 4 * np.std(rates) / np.sqrt(40)
    assert 0.1 - 2 / (count + 1) - error <= np.mean(rates) <= 0.1 + error
    # The nearest neighbor knows no direction in which training slides hardly vary, so that it needs a larger shift.
    assert found.flags(slides(200, seed=5, dim=dim, shift=2.0 if kind == "mahalanobis" else 8.0)).mean() > 0.95


def test_slides_of_one_patient_would_make_the_threshold_too_low() -> None:
    rng = np.random.default_rng(0)
    patients = [f"p{i // 4}" for i in range(160)]

    def cohort(seed: int) -> np.ndarray:
        return np.repeat(slides(40, seed=seed), 4, axis=0) + 0.05 * rng.normal(size=(160, 40))

    aware, blind = [], []
    for trial in range(30):
        training, fresh = cohort(trial), cohort(500 + trial)
        for kind in ("mahalanobis", "knn"):
            aware.append(fit_ood(training, patients, kind=kind, false_flags=0.1).flags(fresh).mean())
            blind.append(fit_ood(training, names(160), kind=kind, false_flags=0.1).flags(fresh).mean())
    assert np.mean(aware) < 0.15
    assert np.mean(blind) > 2 * np.mean(aware)


@pytest.mark.parametrize("kind", ["mahalanobis", "knn"])
def test_a_reference_is_the_same_after_a_round_trip(kind: str) -> None:
    found = fit_ood(slides(60, seed=0), names(60), kind=kind)
    again = OodReference.from_arrays(found.to_arrays())
    fresh = slides(30, seed=1)
    assert (again.distances(fresh) == found.distances(fresh)).all()
    assert (again.kind, again.threshold, again.false_flags, again.rows) == (kind, found.threshold, 0.05, 60)


@pytest.mark.parametrize("kind", ["mahalanobis", "knn"])
def test_a_slide_at_the_threshold_is_not_flagged_and_one_beyond_it_is(kind: str) -> None:
    found, fresh = fit_ood(slides(40, seed=0), names(40), kind=kind), slides(1, seed=1)
    (distance,) = found.distances(fresh)
    assert not replace(found, threshold=distance).flags(fresh).any()
    assert replace(found, threshold=np.nextafter(distance, 0)).flags(fresh).all()


def test_a_rate_that_slides_reach_exactly_is_enough() -> None:
    """0.55 of 100 is a little more than 55 in floating point: the threshold was the 56th distance of 99."""
    training = slides(99, seed=0)
    found = fit_ood(training, names(99), kind="knn", neighbors=1, false_flags=0.45)
    theirs = NearestNeighbors(n_neighbors=2).fit(normalize(training)).kneighbors(normalize(training))[0][:, 1]
    assert found.threshold == pytest.approx(np.sort(theirs)[54], rel=1e-9)


def test_a_slide_whose_mean_feature_is_0_has_a_distance() -> None:
    found = fit_ood(slides(40, seed=0), names(40), kind="knn")
    assert found.distances(np.zeros((1, 40))) == pytest.approx([np.sqrt(2)])


def test_a_rate_that_cannot_be_stated_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs 19 training slides"):
        fit_ood(slides(18, seed=0), names(18))
    with pytest.raises(ConfigError, match="3 patients, got 40 of 2"):
        fit_ood(slides(40, seed=0), ["a", "b"] * 20)
    with pytest.raises(ConfigError, match="are they all the same"):
        fit_ood(np.ones((40, 5)), names(40))
    with pytest.raises(ConfigError, match="5 neighbors of other patients"):
        fit_ood(slides(40, seed=0), [f"p{max(i - 35, 0)}" for i in range(40)], kind="knn", neighbors=5)
    with pytest.raises(ConfigError, match="0 neighbors of other patients"):
        fit_ood(slides(40, seed=0), names(40), kind="knn", neighbors=0)
    with pytest.raises(ValueError, match="finite"):
        fit_ood(slides(40, seed=0), names(40)).flags(np.full((1, 40), np.nan))
