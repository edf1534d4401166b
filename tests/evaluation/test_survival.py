"""Survival figures equal lifelines (recorded, as it needs an older pandas) and scikit-survival (run here)."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from wsimil.evaluation.bootstrap import estimates, resampling
from wsimil.evaluation.survival import censoring_curve, kaplan_meier, log_rank
from wsimil.evaluation.survival_cases import SurvivalCases

# fmt: off
TIMES = np.array([3, 6, 12, 1, 2, 38, 1, 2, 3, 8, 4, 9, 11, 2, 15, 14, 28, 30, 18, 14, 6, 6, 7, 10, 24, 9, 14, 40, 1, 5,
    11, 4, 31, 5, 4, 13, 3, 6, 2, 1.0])
EVENTS = np.array([1, 1, 1, 0, 0, 1, 1, 1, 0, 1, 0, 1, 1, 0, 1, 1, 1, 1, 1, 1, 0, 1, 1, 0, 1, 1, 1, 0, 1, 0, 1, 1, 1, 1,
    0, 1, 0, 1, 1, 1], bool)
RISKS = np.array([-2.1, -.5, -3.7, .6, .6, -5.2, -.3, -2, -.9, -.6, .6, -4, -3, 0, -1.1, -2.2, -4.1, -3.1, -2.9, -2.8,
    -2.5, -1.4, -1.6, -2.4, -3.4, -3.5, -3.1, -2.5, -.2, -3, -1.1, -.9, -1.3, -1.5, -1.8, -4, .2, .8, -1.5, -.6])
GROUPS = [str(g) for g in (1, 0, 2, 1, 0, 1, 0, 0, 1, 1, 0, 1, 0, 0, 0, 0, 2, 1, 0, 2, 1, 0, 0, 0, 2, 1, 2, 2, 1, 2, 1,
    2, 2, 0, 2, 2, 2, 2, 1, 0)]
# fmt: on


def followed(count: int, *, seed: int = 0, whole: bool = False) -> SurvivalCases:
    rng = np.random.default_rng(seed)
    risks = rng.normal(size=count)
    happens = rng.exponential(10 * np.exp(-risks))
    leaves = rng.uniform(1, 40, size=count)
    times = np.minimum(happens, leaves) + 0.01
    horizons = (2.0, 5.0, 10.0, 20.0)
    events = happens <= leaves
    survival = np.exp(-np.array(horizons) * np.exp(0.7 * risks)[:, None] / 9)
    if whole:
        times, risks = np.ceil(times), risks.round()
    return SurvivalCases(
        times=times, events=events, risks=risks, censoring=censoring_curve(times, events), horizons=horizons, survival=survival
    )  # fmt: skip


def test_the_survival_curve_is_that_of_lifelines() -> None:
    """Recorded from lifelines 0.30.3, KaplanMeierFitter with its log-log interval."""
    curve = kaplan_meier(TIMES, EVENTS)
    at = [curve.times.index(t) for t in (3, 6, 9, 15)]
    expected = [0.846310763888889, 0.6874871921511196, 0.5499897537208958, 0.25666188506975135]
    assert [curve.survival[i] for i in at] == pytest.approx(expected, rel=1e-9)
    low = [0.689124864541927, 0.5033890303199687, 0.3630592174331828, 0.11586736121345456]
    high = [0.9279423764378222, 0.815004893399506, 0.7027328697435844, 0.4239437519549498]
    assert [curve.low[i] for i in at] == pytest.approx(low, rel=1e-9)
    assert [curve.high[i] for i in at] == pytest.approx(high, rel=1e-9)
    assert curve.at_risk_at([1, 1.5, 40, 41]) == (40, 36, 1, 0)
    assert sum(curve.events) + sum(curve.censored) == 40


def test_the_median_is_reached_where_half_are_left() -> None:
    """Products of shares miss a half by a rounding: 5/6 * 4/5 * 3/4 does."""
    for half in range(1, 30):
        times = np.arange(1.0, 2 * half + 1)
        assert kaplan_meier(times, np.ones(2 * half, bool)).median == half
    late = kaplan_meier(np.array([1.0, 2, 3, 4]), np.array([False, True, False, False]))
    assert late.median is None
    assert (late.low[0], late.high[0], late.survival[0]) == (None, None, 1.0)


def test_nobody_survives_where_the_last_who_is_seen_dies() -> None:
    curve = kaplan_meier(np.array([1.0, 2, 3]), np.array([True, False, True]))
    assert curve.survival == pytest.approx((2 / 3, 2 / 3, 0))
    assert (curve.low[-1], curve.high[-1]) == (None, None)


def test_the_survival_curve_is_that_of_scipy() -> None:
    data = stats.CensoredData.right_censored(TIMES, ~EVENTS)
    theirs = stats.ecdf(data).sf
    ours = kaplan_meier(TIMES, EVENTS)
    assert ours.survival == pytest.approx(theirs.evaluate(ours.times), rel=1e-9)
    assert theirs.evaluate(ours.median) <= 0.5 < theirs.evaluate(ours.median - 1e-9)
    for level in (0.5, 0.95):
        ours = kaplan_meier(TIMES, EVENTS, level=level)
        told = [i for i, low in enumerate(ours.low) if low is not None]
        band = theirs.confidence_interval(level, method="log-log")
        for end, name in ((ours.low, "low"), (ours.high, "high")):
            wanted = getattr(band, name).evaluate(np.array(ours.times)[told])
            assert [end[i] for i in told] == pytest.approx(wanted, rel=1e-9)
    assert kaplan_meier(TIMES[EVENTS][:1], np.array([False])).median is None


def test_groups_are_compared_as_lifelines_and_scipy_do() -> None:
    """Recorded from lifelines 0.30.3: multivariate_logrank_test over three groups, logrank_test of two."""
    found = log_rank(TIMES, EVENTS, GROUPS)
    assert (found.statistic, found.p_value) == pytest.approx((4.16792665409064, 0.12443605281427735), rel=1e-9)
    two = np.array([group != "2" for group in GROUPS])
    found = log_rank(TIMES[two], EVENTS[two], [group for group in GROUPS if group != "2"])
    assert (found.statistic, found.p_value) == pytest.approx((0.5511988878733706, 0.4578282425998247), rel=1e-9)
    halves = [np.array([group == name for group in GROUPS]) for name in ("0", "1")]
    theirs = stats.logrank(*(stats.CensoredData.right_censored(TIMES[half], ~EVENTS[half]) for half in halves))
    assert found.p_value == pytest.approx(theirs.pvalue, rel=1e-9)
    assert log_rank(TIMES, EVENTS, ["one"] * 40).statistic is None
    assert log_rank(TIMES, np.zeros(40, bool), GROUPS).p_value is None
    with pytest.raises(ValueError, match="1 groups for 40 rows"):
        log_rank(TIMES, EVENTS, ["one"])


@pytest.mark.parametrize("gone", ["a", "z"])
@pytest.mark.parametrize("months", [5, 6, 7, 8])
def test_a_group_that_is_gone_before_the_first_event_is_compared_with_nothing(months: int, gone: str) -> None:
    """By rounding, its variance was not 0 where events were tied, and the two were said to survive alike, with p = 1."""
    times = np.array([1.0, 2, 3, *np.repeat(np.arange(5.0, 5 + months), 2)])
    events = times > 3
    found = log_rank(times, events, [gone] * 3 + ["m"] * (2 * months))
    assert (found.groups, found.statistic, found.p_value) == (2, None, None)


def test_concordance_is_that_of_lifelines() -> None:
    cases = SurvivalCases(times=TIMES, events=EVENTS, risks=RISKS, censoring=censoring_curve(TIMES, EVENTS))
    assert cases.values()["harrell_c"] == pytest.approx(0.6925403225806451, rel=1e-9)


def test_concordance_of_more_rows_than_are_compared_at_once_is_that_of_all_pairs() -> None:
    cases = followed(1300, whole=True)
    assert cases.events.sum() > 600
    first, second = cases.times[:, None], cases.times
    comparable = cases.events[:, None] & ((second > first) | ((second == first) & ~cases.events))
    right = (np.sign(cases.risks[:, None] - cases.risks) + 1) / 2
    early = comparable * ((first < 20) / cases.censoring.before(cases.times)[:, None] ** 2)
    found = cases.values()
    assert found["harrell_c"] == pytest.approx(right[comparable].mean(), rel=1e-12)
    assert found["uno_c"] == pytest.approx((early * right).sum() / early.sum(), rel=1e-12)
    assert (cases.events & (cases.times == 20)).any()


@pytest.mark.parametrize("whole", [False, True])
def test_every_figure_is_that_of_scikit_survival(whole: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metrics = pytest.importorskip("sksurv.metrics")
        util = pytest.importorskip("sksurv.util")
    cases = followed(150, whole=whole)
    ours = cases.values()
    # It weighs an event by who is followed after it: tied ones are told a moment before who was censored then.
    moment = 1e-6 if whole else 0.0
    times = cases.times - moment * cases.events
    truth = util.Surv.from_arrays(cases.events, times)
    horizons = np.array(cases.horizons)
    assert ours["harrell_c"] == pytest.approx(
        metrics.concordance_index_censored(cases.events, times, cases.risks)[0], rel=1e-9
    )
    assert ours["uno_c"] == pytest.approx(
        metrics.concordance_index_ipcw(truth, truth, cases.risks, tau=20.0 - moment)[0], rel=1e-9
    )
    _, brier = metrics.brier_score(truth, truth, cases.survival, horizons)
    assert [ours[f"brier_at_{h:g}"] for h in horizons] == pytest.approx(brier, rel=1e-9)
    assert ours["integrated_brier"] == pytest.approx(
        metrics.integrated_brier_score(truth, truth, cases.survival, horizons), rel=1e-9
    )
    auc, _ = metrics.cumulative_dynamic_auc(truth, truth, cases.risks, horizons)
    assert [ours[f"auc_at_{h:g}"] for h in horizons] == pytest.approx(auc, rel=1e-9)


def test_two_horizons_are_enough_for_an_integral_and_must_rise_from_above_0() -> None:
    cases = followed(60)
    assert cases.survival is not None
    two = replace(cases, horizons=(2.0, 5.0), survival=cases.survival[:, :2]).values()
    assert two["integrated_brier"] == pytest.approx((two["brier_at_2"] + two["brier_at_5"]) / 2)
    assert "integrated_brier" not in replace(cases, horizons=(2.0,), survival=cases.survival[:, :1]).values()
    for horizons in ((2.0, 2.0), (0.0, 2.0)):
        with pytest.raises(ValueError, match="must rise from above 0"):
            replace(cases, horizons=horizons, survival=None)


def test_a_replicate_has_as_many_events_as_there_are() -> None:
    cases = followed(40)
    weights = np.concatenate(list(resampling([str(i) for i in range(40)], cases.strata).weights(50, seed=0)))
    assert set((weights @ cases.events).tolist()) == {cases.events.sum()}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.booleans())
def test_a_constant_half_has_a_brier_score_of_a_quarter(seed: int, whole: bool) -> None:
    """Whatever the follow-up, as every error is a quarter: in whole years it was up to 0.33."""
    cases = followed(40, seed=seed, whole=whole)
    found = replace(cases, survival=np.full((40, len(cases.horizons)), 0.5)).values()
    told = {name: value for name, value in found.items() if "brier" in name and value is not None}
    assert {"brier_at_2", "brier_at_5", "integrated_brier"} <= set(told)
    assert told == pytest.approx(dict.fromkeys(told, 0.25), rel=1e-9)


def test_an_event_at_the_time_of_the_last_who_is_censored_is_weighed() -> None:
    times, events = np.array([1, 2, 3, 4, 5, 6, 6.0]), np.array([1, 1, 0, 1, 1, 1, 0], bool)
    censoring = censoring_curve(times, events)
    assert (censoring.at(times)[-1], censoring.before(times)[-1]) == pytest.approx((0.0, 0.8))
    cases = SurvivalCases(times=times, events=events, risks=-np.arange(7.0), censoring=censoring)
    assert cases.values() == {"harrell_c": 1.0, "uno_c": pytest.approx(1.0)}


def test_replicates_equal_a_plain_loop_over_resampled_rows() -> None:
    cases = followed(50, whole=True)
    weights = np.concatenate(list(resampling([str(i) for i in range(50)], cases.strata).weights(20, seed=0)))
    drawn = cases.replicates(weights)
    for replicate, row in enumerate(weights.astype(int)):
        again = cases.take(np.repeat(np.arange(50), row)).values()
        assert {name: column[replicate] for name, column in drawn.items()} == pytest.approx(again, rel=1e-9)
    found = estimates(cases, [str(i) for i in range(50)])["harrell_c"]
    assert found.low is not None
    assert found.low < found.value < found.high


def test_brier_of_a_replicate_ends_where_the_follow_up_of_its_rows_does() -> None:
    """Without the one who was followed beyond a horizon, events alone drew the lower end of the interval to 0."""
    cases = followed(50, whole=False)
    last = float(np.sort(cases.times)[-2])
    assert cases.survival is not None
    cases = replace(cases, horizons=(2.0, 5.0, last), survival=cases.survival[:, [0, 1, -1]])
    patients = [str(i) for i in range(50)]
    weights = np.concatenate(list(resampling(patients, cases.strata).weights(20, seed=0)))
    drawn, undefined = cases.replicates(weights), 0
    for replicate, row in enumerate(weights.astype(int)):
        again = cases.take(np.repeat(np.arange(50), row)).values()
        got = {name: float(column[replicate]) for name, column in drawn.items()}
        wanted = {name: np.nan if value is None else value for name, value in again.items()}
        assert got == pytest.approx(wanted, rel=1e-9, nan_ok=True)
        undefined += again[f"brier_at_{last:g}"] is None
    assert 0 < undefined < 20
    found = estimates(cases, patients, replicates=200)[f"brier_at_{last:g}"]
    assert found.value is not None
    assert found.low is found.high is None


def test_what_cannot_be_compared_is_undefined() -> None:
    times = np.array([1.0, 2.0, 3.0])
    none = SurvivalCases(
        times=times, events=np.zeros(3, bool), risks=times, censoring=censoring_curve(times, np.ones(3, bool)), horizons=(2.0,)
    )  # fmt: skip
    assert none.values() == {"harrell_c": None, "uno_c": None, "auc_at_2": None}
    # After the last patient has left, nothing is known of who would still be followed.
    short = censoring_curve(np.array([1.5]), np.array([False]))
    beyond = SurvivalCases(
        times=times, events=np.ones(3, bool), risks=-times, censoring=short, horizons=(2.5,), survival=np.full((3, 1), 0.5)
    )  # fmt: skip
    assert beyond.values() == {"harrell_c": 1.0, "uno_c": None, "auc_at_2.5": None, "brier_at_2.5": None}


@pytest.mark.parametrize("last_is_event", [False, True])
def test_brier_ends_where_the_follow_up_does(last_is_event: bool) -> None:
    """Beyond it only events were counted, which a low survival answers perfectly: 0.01 of 0.25, and it drew the integral down."""
    cases = followed(80, whole=False)
    events = cases.events.copy()
    events[cases.times.argmax()] = last_is_event
    inside = tuple(h for h in cases.horizons if h < cases.times.max())
    assert len(inside) > 1
    horizons = (*inside, float(cases.times.max()), float(cases.times.max()) + 3)
    assert cases.survival is not None
    survival = np.concatenate([cases.survival[:, : len(inside)], np.full((80, 2), 0.05)], axis=1)
    given = {
        "times": cases.times,
        "events": events,
        "risks": cases.risks,
        "censoring": censoring_curve(cases.times, events),
    }
    beyond = SurvivalCases(**given, horizons=horizons, survival=survival).values()
    short = SurvivalCases(**given, horizons=inside, survival=survival[:, : len(inside)]).values()
    assert [beyond[f"brier_at_{h:g}"] for h in horizons[len(inside) :]] == [None, None]
    assert beyond["integrated_brier"] == short["integrated_brier"]
    assert short["integrated_brier"] is not None


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.booleans())
def test_only_the_order_of_risks_counts_and_reversing_it_mirrors_concordance(seed: int, whole: bool) -> None:
    cases = followed(40, seed=seed, whole=whole)
    settings_ = {"times": cases.times, "events": cases.events, "censoring": cases.censoring}
    ours = SurvivalCases(risks=cases.risks, **settings_).values()
    stretched = SurvivalCases(risks=np.exp(cases.risks) * 7, **settings_).values()
    mirrored = SurvivalCases(risks=-cases.risks, **settings_).values()
    assert stretched == pytest.approx(ours, rel=1e-12)
    assert {name: value + mirrored[name] for name, value in ours.items()} == pytest.approx(dict.fromkeys(ours, 1))


def test_times_below_zero_are_refused_and_zero_is_a_time() -> None:
    with pytest.raises(ValueError, match="0 or more, got -1 among 2"):
        kaplan_meier(np.array([-1.0, 1.0]), np.array([True, False]))
    # One of three dies at once, one is never followed, and one is.
    curve = kaplan_meier(np.array([0.0, 0.0, 1.0]), np.array([True, False, False]))
    assert curve.survival[-1] == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="must be bool"):
        kaplan_meier(np.array([1.0, 2.0]), np.array([1, 0]))
