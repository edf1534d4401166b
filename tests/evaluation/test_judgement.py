"""Judging a table of answers: class by class, halves by risk, and the worst answers first."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.evaluation.made import some_classes, two_classes
from tests.stages.made_runs import KINDS, answers
from wsimil.evaluation.binary import BinaryCases
from wsimil.evaluation.bootstrap import estimates
from wsimil.evaluation.delong import delong_auroc, delong_difference
from wsimil.evaluation.judgement import Judged, compare, judge
from wsimil.evaluation.multilabel import MultilabelCases
from wsimil.evaluation.one_class import class_cases, delong_of_two, judge_class
from wsimil.evaluation.risk_groups import risk_groups
from wsimil.evaluation.survival import censoring_curve, kaplan_meier, log_rank
from wsimil.evaluation.survival_cases import SurvivalCases
from wsimil.evaluation.wrong import said_of, wrong_answers
from wsimil.targets import MultiLabel, Regression


def rows(kind: str, count: int = 60, *, seed: int = 0, noise: float = 1.0) -> Judged:
    task, labels, values = answers(kind, count, seed=seed, noise=noise)
    names = tuple(str(i) for i in range(count))
    return Judged(
        task=task, slide_ids=names, patients=names, runs=("",) * count, labels=tuple(labels), values=np.stack(values)
    )


def survivors(count: int, *, seed: int = 0) -> SurvivalCases:
    rng = np.random.default_rng(seed)
    times, events, risks = rng.exponential(size=count), rng.random(count) < 0.7, rng.normal(size=count)
    return SurvivalCases(
        times=times,
        events=events,
        risks=risks,
        censoring=censoring_curve(times, events),
        horizons=(0.5, 1.0),
        survival=np.stack([np.exp(-0.5 * np.exp(risks)), np.exp(-np.exp(risks))], axis=1),
    )


def test_a_class_of_several_is_judged_against_the_rest() -> None:
    cases = some_classes(90, 3)
    own = [str(i) for i in range(90)]
    one = class_cases(cases, ("a", "b", "c"))[1]
    found = judge_class(one, cases, own, found={}, one_run=True, replicates=100, seed=0)
    rest = BinaryCases(targets=(cases.targets == 1).astype(int), probabilities=cases.probabilities[:, 1], threshold=0.5)
    assert found.estimates["auroc"] == estimates(rest, own, replicates=100)["auroc"]
    decided = cases.decided == 1
    assert found.estimates["sensitivity"].value == pytest.approx(decided[cases.targets == 1].mean())
    assert found.estimates["ppv"].value == pytest.approx((cases.targets == 1)[decided].mean())
    assert (found.rows, found.positive) == (90, int((cases.targets == 1).sum()))
    assert found.threshold is None
    assert found.decision is None
    assert sum(map(sum, found.histogram)) == 90


def test_of_two_classes_the_second_is_judged_by_the_metrics_of_the_whole() -> None:
    cases = two_classes(60)
    own = [str(i) for i in range(60)]
    whole = estimates(cases, own, replicates=100)
    (one,) = class_cases(cases, ("normal", "tumor"))
    found = judge_class(one, cases, own, found=whole, one_run=False, replicates=100, seed=0)
    assert (found.name, found.threshold) == ("tumor", 0.6)
    assert found.estimates == whole
    assert found.delong is None


def test_a_label_that_is_not_known_of_a_row_leaves_it_out_of_that_label() -> None:
    cases = MultilabelCases(
        labels=("er", "pr"),
        targets=np.array([[1, -1], [0, 1], [1, 0], [0, 1]]),
        probabilities=np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.4, 0.6]]),
        thresholds=(0.5, 0.5),
    )
    pr = class_cases(cases, ())[1]
    assert pr.rows.tolist() == [1, 2, 3]
    assert pr.cases.targets.tolist() == [1, 0, 1]


def test_a_label_is_judged_by_the_patients_of_the_rows_where_it_is_known() -> None:
    """The two slides of p are one row where the label of one of them is not known."""
    cases = MultilabelCases(
        labels=("er",),
        targets=np.array([[-1], [1], [0], [1], [0]]),
        probabilities=np.array([[0.5], [0.4], [0.2], [0.7], [0.6]]),
        thresholds=(0.5,),
    )
    patients = ["p", "p", "q", "r", "s"]
    (one,) = class_cases(cases, ())
    found = judge_class(one, cases, patients, found={}, one_run=True, replicates=50, seed=0)
    assert found.delong_of == "rows"
    assert found.delong == delong_auroc(one.cases.targets, one.cases.probabilities, ["p", "q", "r", "s"])


def test_two_models_are_compared_by_the_means_of_patients_first_less_second() -> None:
    rng = np.random.default_rng(0)
    targets = np.repeat(np.arange(20) % 2, 2)
    first, second = rng.random(40) + targets, rng.random(40)
    patients = [f"p{i // 2}" for i in range(40)]
    found, of = delong_of_two(targets, first, second, patients)
    assert of == "patients"
    assert found is not None
    assert found.difference is not None
    assert found.difference > 0
    halved = [scores.reshape(20, 2).mean(axis=1) for scores in (first, second)]
    assert found == delong_difference(targets[::2], *halved, patients[::2])


def test_agreement_is_predicted_less_true() -> None:
    task = Regression(columns=("age",), mean=(0.0,), scale=(1.0,))
    judged = Judged(
        task=task, slide_ids=tuple("abc"), patients=tuple("abc"), runs=("",) * 3, labels=("10", "20", "30"),
        values=np.array([[11.0], [23.0], [38.0]]),
    )  # fmt: skip
    (found,) = judge(judged, groups={}, replicates=50).agreement
    sd = np.std([1.0, 3.0, 8.0], ddof=1)
    assert (found.mean, found.sd) == pytest.approx((4.0, sd))
    assert (found.low, found.high) == pytest.approx((4.0 - 1.96 * sd, 4.0 + 1.96 * sd))


def test_halves_by_risk_are_those_of_the_median() -> None:
    cases = survivors(101)
    own = [str(i) for i in range(101)]
    found = risk_groups(cases, own, [""] * 101)
    assert found is not None
    high = cases.risks > np.median(cases.risks)
    assert [one.patients for one in found.groups] == [51, 50]
    assert found.groups[1].curve == kaplan_meier(cases.times[high], cases.events[high])
    # Names that sort as ours do: the last bit hangs on which group is left out of the covariance.
    assert found.log_rank == log_rank(cases.times, cases.events, np.where(high, "a", "b").tolist())
    assert found.groups[0].at_risk[0] == 51
    assert found.at_times[0] == 0
    assert 4 <= len(found.at_times) <= 7


def test_risks_of_two_runs_are_ranked_within_each() -> None:
    cases = survivors(40)
    runs = ["a"] * 20 + ["b"] * 20
    own = [str(i) for i in range(40)]
    shifted = SurvivalCases(
        times=cases.times,
        events=cases.events,
        risks=np.where(np.arange(40) < 20, cases.risks, 100 + 50 * cases.risks),
        censoring=cases.censoring,
    )
    ours, theirs = risk_groups(cases, own, runs), risk_groups(shifted, own, runs)
    assert ours is not None
    assert theirs is not None
    assert ours.groups == theirs.groups
    assert [one.patients for one in ours.groups] == [20, 20]


def test_folds_of_other_sizes_are_halved_alike() -> None:
    """Ranks that are not shares of their fold would put most patients of the larger one into the higher half."""
    cases = survivors(40)
    small = np.arange(40) < 10
    runs = np.where(small, "a", "b").tolist()
    found = risk_groups(cases, [str(i) for i in range(40)], runs)
    assert found is not None
    high = np.where(small, cases.risks > np.median(cases.risks[small]), cases.risks > np.median(cases.risks[~small]))
    assert (high[small].sum(), high[~small].sum()) == (5, 15)
    assert found.groups[1].curve == kaplan_meier(cases.times[high], cases.events[high])


def test_a_patient_who_is_alone_in_a_run_is_in_its_middle() -> None:
    cases = survivors(9)
    found = risk_groups(cases, [str(i) for i in range(9)], ["a"] + ["b"] * 8)
    assert found is not None
    high = np.array([False, *(cases.risks[1:] > np.median(cases.risks[1:]))])
    assert found.groups[1].curve == kaplan_meier(cases.times[high], cases.events[high])


@pytest.mark.parametrize(
    ("last", "marks"),
    [
        (0.0, (0.0,)),
        (0.6, (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)),
        (6.0, (0, 1, 2, 3, 4, 5, 6)),
        (6.5, (0, 2, 4, 6)),
        (60.0, (0, 10, 20, 30, 40, 50, 60)),
    ],
)
def test_those_at_risk_are_told_at_round_times_from_0_to_the_last(last: float, marks: tuple[float, ...]) -> None:
    times = np.array([0.0, last])
    cases = SurvivalCases(
        times=times, events=np.ones(2, bool), risks=-times, censoring=censoring_curve(times, np.ones(2, bool))
    )
    found = risk_groups(cases, ["a", "b"], ["", ""])
    assert found is not None
    assert found.at_times == pytest.approx(marks)


def test_halves_over_runs_are_halves_of_patients() -> None:
    """Mean ranks over runs that disagree need not have their middle at a half."""
    cases = survivors(40)
    others = np.random.default_rng(6).normal(size=40)
    both = SurvivalCases(
        times=np.tile(cases.times, 2),
        events=np.tile(cases.events, 2),
        risks=np.concatenate([cases.risks, others]),
        censoring=cases.censoring,
    )
    found = risk_groups(both, [str(i) for i in range(40)] * 2, ["a"] * 40 + ["b"] * 40)
    assert found is not None
    assert [one.patients for one in found.groups] == [20, 20]


def test_a_patient_with_several_slides_is_one_patient_in_halves() -> None:
    cases = survivors(30)
    twice = cases.take(np.repeat(np.arange(30), 2))
    once = risk_groups(cases, [str(i) for i in range(30)], [""] * 30)
    found = risk_groups(twice, [str(i // 2) for i in range(60)], [""] * 60)
    assert once is not None
    assert found is not None
    assert found.groups == once.groups
    # Nor does it count for more than others with one slide: halves of slides held most patients in one.
    slides = np.where(cases.risks > np.quantile(cases.risks, 0.7), 8, 1)
    many = cases.take(np.repeat(np.arange(30), slides))
    found = risk_groups(many, [str(i) for i in np.repeat(np.arange(30), slides)], [""] * len(many))
    assert found is not None
    assert found.groups == once.groups
    mixed = [str(i // 2) for i in range(30)]
    assert risk_groups(cases, mixed, [""] * 30) is None
    for other in (replace(twice, times=twice.times + np.arange(60)), replace(twice, events=np.arange(60) % 2 == 0)):
        assert risk_groups(other, [str(i // 2) for i in range(60)], [""] * 60) is None


def test_calibration_at_a_horizon_holds_predicted_against_seen() -> None:
    cases = survivors(100)
    found = risk_groups(cases, [str(i) for i in range(100)], [""] * 100)
    assert found is not None
    assert cases.survival is not None
    at = found.calibration[0]
    assert at.horizon == 0.5
    assert [row.patients for row in at.bins] == [20] * 5
    more = risk_groups(survivors(130), [str(i) for i in range(130)], [""] * 130)
    assert more is not None
    assert [row.patients for row in more.calibration[0].bins] == [26] * 5
    lowest = np.argsort(cases.survival[:, 0], kind="stable")[:20]
    curve = kaplan_meier(cases.times[lowest], cases.events[lowest])
    step = max(i for i, time in enumerate(curve.times) if time <= 0.5)
    assert (at.bins[0].observed, at.bins[0].low) == (curve.survival[step], curve.low[step])
    assert at.bins[0].predicted == pytest.approx(cases.survival[lowest, 0].mean())


def test_calibration_tells_what_was_seen_until_a_horizon_and_nothing_beyond() -> None:
    """Twenty patients of low predicted survival, of whom one dies each month, and twenty others, from the tenth month on."""
    times = np.repeat(np.concatenate([np.arange(1.0, 21), np.arange(10.0, 30)]), 2)
    events = np.arange(80) < 78  # the last is alive in month 29, when he is last seen
    horizons = (1.0, 5.0, 20.0, 25.0, 29.0, 40.0)
    predicted = np.where(np.arange(80) < 40, 0.3, 0.8) + np.tile([-0.1, 0.2], 40)  # two slides of each
    cases = SurvivalCases(
        times=times,
        events=events,
        risks=-predicted,
        censoring=censoring_curve(times, events),
        horizons=horizons,
        survival=np.tile(predicted[:, None], 6),
    )
    patients = [str(i // 2) for i in range(80)]
    found = risk_groups(cases, patients, [""] * 80)
    assert found is not None
    seen = {one.horizon: [row.observed for row in one.bins] for one in found.calibration}
    wanted = {1.0: [0.95, 1.0], 5.0: [0.75, 1.0], 20.0: [0.0, 0.45], 25.0: [0.0, 0.2], 29.0: [0.0, 0.05], 40.0: [0.0]}
    assert list(seen) == list(wanted)
    assert all(seen[horizon] == pytest.approx(wanted[horizon]) for horizon in wanted)
    assert [row.predicted for row in found.calibration[0].bins] == pytest.approx([0.35, 0.85])
    assert (found.calibration[0].bins[1].low, found.calibration[0].bins[1].high) == (None, None)
    fewer = risk_groups(cases.take(np.arange(78)), patients[:78], [""] * 78)
    assert fewer is not None
    assert fewer.calibration == ()


@pytest.mark.parametrize("kind", KINDS)
def test_the_worst_answers_come_first_and_are_wrong(kind: str) -> None:
    judged = rows(kind, 80, noise=2.0)
    found = wrong_answers(judged.task, judged.cases(), most=10)
    numbers = [abs(one.number) for one in found]
    assert numbers == sorted(numbers, reverse=True)
    assert 0 < len(found) <= 10
    assert all(one.said != one.truth for one in found)
    if kind in ("two", "three", "ordinal"):
        assert all(judged.labels[one.row] == one.truth for one in found)
    if kind == "three":
        column = [names.name for names in judged.task.answers].index(f"prob_{found[0].said}")
        assert found[0].number == judged.values[found[0].row, column]


def test_a_risk_that_is_wrong_in_most_pairs_is_told_by_their_share() -> None:
    times, events = np.arange(1.0, 9.0), np.ones(8, dtype=bool)
    risks = np.array([0.0, 7, 6, 5, 4, 3, 2, 1])
    cases = SurvivalCases(times=times, events=events, risks=risks, censoring=censoring_curve(times, events))
    found = wrong_answers(answers("survival")[0], cases)
    assert [(one.row, one.number) for one in found] == [(0, 1.0)]
    assert found[0].said == "risk 0.000, number 8 of 8"


def test_risks_that_are_equal_are_half_wrong_and_few_pairs_tell_nothing() -> None:
    task = answers("survival")[0]

    def found(risks: list[float]) -> list[tuple[int, float]]:
        times, events = np.arange(1.0, len(risks) + 1), np.ones(len(risks), dtype=bool)
        cases = SurvivalCases(
            times=times, events=events, risks=np.array(risks), censoring=censoring_curve(times, events)
        )
        return [(one.row, one.number) for one in wrong_answers(task, cases)]

    assert found([0.0] * 6) == []
    assert found([3.0, 2, 1, 0, 0, 4]) == [(5, 1.0)]
    assert found([2.0, 2, 2, 1, 1, 3]) == [(5, 1.0)]
    assert found([1.0, 1, 2, 2, 3, 3]) == [(row, 0.9) for row in range(6)]
    assert found([0.0, 1, 2, 3, 4]) == []


def test_wrong_labels_are_those_of_their_own_rows() -> None:
    """Where a label is not known of a row, the rows after it are still themselves."""
    task = MultiLabel(columns=("er", "pr"))
    values = np.array([[0.9, 0.5], [0.8, 0.1], [0.3, 0.9], [0.2, 0.5]])
    judged = Judged(
        task=task, slide_ids=tuple("abcd"), patients=tuple("abcd"), runs=("",) * 4, labels=("er=?", "pr", "er;pr", "er"),
        values=values,
    )  # fmt: skip
    found = [(one.row, one.of, one.truth, one.said, one.number) for one in wrong_answers(task, judged.cases())]
    assert found == [
        (1, "pr", "has it", "has it not", pytest.approx(0.9)),
        (1, "er", "has it not", "has it", pytest.approx(0.8)),
        (3, "er", "has it", "has it not", pytest.approx(0.8)),
        (2, "er", "has it", "has it not", pytest.approx(0.7)),
        (0, "pr", "has it not", "has it", pytest.approx(0.5)),
        (3, "pr", "has it not", "has it", pytest.approx(0.5)),
    ]
    assert said_of(task, judged.cases(), values) == ["er;pr", "er", "pr", "pr"]
    assert [task.decided(row) for row in values] == ["er;pr", "er", "pr", "pr"]


def test_errors_of_several_numbers_are_told_in_their_spreads() -> None:
    task = Regression(columns=("age", "ki67"), mean=(0.0, 0.0), scale=(1.0, 1.0))
    truth, values = np.array([[40.0, 0.1], [60.0, 0.3]]), np.array([[45.0, 0.1], [60.0, 0.1]])
    judged = Judged(
        task=task, slide_ids=("a", "b"), patients=("a", "b"), runs=("",) * 2, labels=("40;0.1", "60;0.3"), values=values
    )
    first, second = wrong_answers(task, judged.cases(), most=2)
    assert (first.row, first.of, first.number) == (1, "ki67", pytest.approx(-0.2 / truth[:, 1].std()))
    assert (second.row, second.of, second.number) == (0, "age", pytest.approx(5 / truth[:, 0].std()))


def test_what_is_drawn_for_a_comparison_is_the_probability_of_the_second_class() -> None:
    first, second = rows("two"), rows("two", seed=1)
    found = compare(first, second, replicates=100)
    assert found.scored == "prob_tumor"
    assert np.array_equal(found.scores[:, 1], second.values[:, 1])
    assert found.right is not None
    both = [np.array(one.values)[:, 1] >= 0.5 for one in (first, second)]
    truth = np.array([label == "tumor" for label in first.labels])
    assert found.right[1] == int(((both[0] == truth) & (both[1] != truth)).sum())


def test_rows_in_another_order_are_not_compared_nor_none_judged() -> None:
    first = rows("two")
    other = rows("two", 59)
    with pytest.raises(ValueError, match="on the same rows"):
        compare(first, other)
    swapped = replace(first, slide_ids=(*first.slide_ids[:-2], first.slide_ids[-1], first.slide_ids[-2]))
    with pytest.raises(ValueError, match="on the same rows"):
        compare(first, swapped)
    with pytest.raises(ValueError, match="no row to judge"):
        judge(
            Judged(task=first.task, slide_ids=(), patients=(), runs=(), labels=(), values=np.zeros((0, 2))), groups={}
        )


def test_labels_of_several_runs_are_decided_each_at_its_own_thresholds() -> None:
    task = MultiLabel(columns=("er", "pr"))
    judged = Judged(
        task=task, slide_ids=("s1", "s2", "s3", "s4"), patients=("p1", "p2", "p3", "p4"), runs=("a", "b", "a", "b"),
        labels=("er;pr", "-", "er", "pr=?"), values=np.array([[0.6, 0.6], [0.6, 0.6], [0.3, 0.3], [0.3, 0.3]]),
    )  # fmt: skip
    cases = judged.cases({"a": (0.5, 0.7), "b": (0.7, 0.2)})
    assert isinstance(cases, MultilabelCases)
    assert cases.of("er").decided.tolist() == [1, 0, 0, 0]
    assert cases.of("pr").decided.tolist() == [0, 1, 0]
    assert cases.take(np.array([3, 0])).of("er").decided.tolist() == [0, 1]
    with pytest.raises(ValueError, match="a finite threshold for each"):
        judged.cases((0.5,))
