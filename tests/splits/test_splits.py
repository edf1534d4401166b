"""Splits let no patient, site or slide under another name onto two sides, and their file says when it was touched."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsimil.cohort import Cohort, CohortSlide
from wsimil.errors import CohortError, ConfigError
from wsimil.splits import Round, SplitPlan, SplitsConfig, make_plan, read_plan, write_plan
from wsimil.splits.sites import even_folds, site_folds, unevenness
from wsimil.targets import Regression, Survival


def cohort(patients: int = 60, sites: int = 7, *, seed: int = 0) -> Cohort:
    rng = np.random.default_rng(seed)
    slides = []
    for patient in range(patients):
        site, label = f"site{patient % sites}", "nt"[patient // 2 % 2]
        for number in range(1 + int(rng.integers(3))):
            slide_id = f"s{patient}-{number}"
            slides.append(CohortSlide(slide_id=slide_id, patient_id=f"p{patient}", label=label, site=site))
    return Cohort(slides=tuple(slides), classes=("n", "t"))


KINDS = {
    "kfold": {"folds": 4},
    "repeated": {"kind": "kfold", "folds": 3, "repeats": 3},
    "sites": {"kind": "kfold", "folds": 3, "preserve_sites": True},
    "nested": {"kind": "nested", "folds": 3, "inner_folds": 3},
    "monte_carlo": {"kind": "monte_carlo", "repeats": 5},
    "external": {"kind": "external", "external": ["site1", "site4"], "folds": 3},
}


def plan_of(name: str, whole: Cohort | None = None, seed: int = 0) -> SplitPlan:
    return make_plan(whole or cohort(), SplitsConfig.model_validate({**KINDS[name], "seed": seed}))


def patients(plan: SplitPlan, ids: tuple[str, ...]) -> set[str]:
    return {plan.slides[slide_id][0] for slide_id in ids}


@pytest.mark.parametrize("name", KINDS)
@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 10_000))
def test_no_patient_is_on_two_sides_of_any_round(name: str, seed: int) -> None:
    plan = plan_of(name, cohort(seed=seed % 5), seed)
    for one in plan.rounds:
        train, val, test = (patients(plan, ids) for _, ids in one.sides())
        assert len(train | val | test) == len(train) + len(val) + len(test)
        assert train
        assert val


@pytest.mark.parametrize("name", ["kfold", "repeated", "sites", "nested"])
def test_every_patient_is_tested_once_in_each_repeat(name: str) -> None:
    plan = plan_of(name)
    outer = [one for one in plan.rounds if one.test]
    tested = Counter(patient for one in outer for patient in patients(plan, one.test))
    assert set(tested.values()) == {3 if name == "repeated" else 1}
    assert len(tested) == 60


def test_folds_keep_classes_even() -> None:
    plan = plan_of("kfold")
    labels = {known[0]: known[1] for known in plan.slides.values()}
    shares = [sum(labels[p] == "t" for p in patients(plan, one.test)) for one in plan.rounds]
    assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize("name", KINDS)
def test_the_order_of_the_cohort_file_changes_nothing(name: str) -> None:
    whole = cohort()
    turned = replace(whole, slides=whole.slides[::-1])
    assert plan_of(name, whole).digest == plan_of(name, turned).digest


@pytest.mark.parametrize("name", KINDS)
def test_another_seed_draws_others(name: str) -> None:
    assert plan_of(name, seed=0).rounds != plan_of(name, seed=1).rounds


def test_inner_rounds_never_see_the_test_fold_of_their_outer_round() -> None:
    plan = plan_of("nested")
    outer = {one.name: one for one in plan.rounds if one.test}
    inner = [one for one in plan.rounds if not one.test]
    assert len(inner) == 9
    for one in inner:
        held_out = patients(plan, outer[one.name.split(".")[0]].test)
        assert not held_out & (patients(plan, one.train) | patients(plan, one.val))
        assert patients(plan, one.train) | patients(plan, one.val) | held_out == set(cohort().patients)


def test_an_external_test_is_the_same_in_every_round_and_holds_its_sites_whole() -> None:
    whole, plan = cohort(), plan_of("external")
    assert len({one.test for one in plan.rounds}) == 1
    sites = {s.slide_id: s.site for s in whole.slides}
    assert {sites[slide_id] for slide_id in plan.rounds[0].test} == {"site1", "site4"}
    assert not {sites[s] for s in plan.rounds[0].train + plan.rounds[0].val} & {"site1", "site4"}


@pytest.mark.parametrize("name", ["repeated", "monte_carlo"])
def test_repeats_are_drawn_anew(name: str) -> None:
    plan = plan_of(name)
    tests = [frozenset(patients(plan, one.test)) for one in plan.rounds]
    assert len(set(tests)) == len(plan.rounds)
    if name == "repeated":
        for repeat in range(3):
            own = [test for one, test in zip(plan.rounds, tests, strict=True) if one.name.startswith(f"{repeat}.")]
            assert len(frozenset().union(*own)) == sum(map(len, own)) == 60


def test_the_validation_split_is_a_share_of_all_patients_and_half_of_those_that_are_left_at_most() -> None:
    """Sixty patients, half of them of each class; rounded within each."""
    for asked, val in (
        ({"folds": 4}, 2 * 5),  # 0.15 of 60, where it would be 7 of the 45 that are left
        ({"kind": "monte_carlo", "test_fraction": 0.6, "val_fraction": 0.3}, 2 * 6),
    ):
        plan = make_plan(cohort(), SplitsConfig.model_validate(asked))
        assert abs(len(patients(plan, plan.rounds[0].val)) - val) <= 1


def test_a_patient_with_one_slide_of_an_external_site_is_tested_on() -> None:
    whole = cohort()
    moved = tuple(replace(s, site="site1") if s.slide_id == "s0-0" else s for s in whole.slides)
    assert sum(s.patient_id == "p0" for s in moved) > 1
    plan = make_plan(replace(whole, slides=moved), SplitsConfig(kind="external", external=("site1",), folds=3))
    assert all("p0" in patients(plan, one.test) for one in plan.rounds)


def test_an_external_test_is_what_the_split_column_calls_test() -> None:
    whole = cohort()
    named = tuple(replace(s, split="test" if int(s.patient_id[1:]) < 12 else "train") for s in whole.slides)
    plan = make_plan(replace(whole, slides=named), SplitsConfig(kind="external", folds=3))
    for one in plan.rounds:
        assert set(one.test) == {s.slide_id for s in named if s.split == "test"}
        assert len(one.train + one.val) == len(named) - len(one.test)
    validated = [slide_id for one in plan.rounds for slide_id in one.val]
    assert sorted(validated) == sorted(s.slide_id for s in named if s.split == "train")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"kind": "external"}, "nothing to test on: name sites"),
        ({"kind": "external", "external": ["site1", "Site2"]}, "no slide is of site 'Site2', which external names"),
        ({"kind": "external", "external": [f"site{i}" for i in range(7)]}, "round 0: no patient is left to learn from"),
        ({"kind": "column"}, "neither a fold nor a split column"),
        ({"kind": "kfold", "folds": 31}, "'n' has 30 patients, fewer than the 31 folds"),
    ],
    ids=["no site", "another site", "all sites", "no column", "many folds"],
)
def test_a_plan_that_would_test_on_nobody_or_learn_from_nobody_is_refused(given: dict[str, object], says: str) -> None:
    with pytest.raises(CohortError, match=says):
        make_plan(cohort(), SplitsConfig.model_validate(given))


def test_strata_of_times_may_be_smaller_than_folds_are_many() -> None:
    """Tertiles of time, with an event and without, were taken for classes, of which each fold is to hold one at least."""
    rng = np.random.default_rng(0)
    labels = [
        f"{time} {'event' if seen else 'censored'}"
        for time, seen in zip(range(1, 31), rng.random(30) < 0.4, strict=True)
    ]
    slides = tuple(CohortSlide(slide_id=f"s{i}", patient_id=f"p{i}", label=label) for i, label in enumerate(labels))
    whole = Cohort(slides=slides, task=Survival())
    assert min(Counter(whole.strata().values()).values()) < 5
    assert [len(one.test) for one in make_plan(whole, SplitsConfig()).rounds] == [6] * 5
    with pytest.raises(CohortError, match="the cohort has 30 patients, fewer than the 31 folds"):
        make_plan(whole, SplitsConfig(folds=31))
    with pytest.raises(CohortError, match="the rest of the cohort has 15 patients, fewer than the 16 folds"):
        make_plan(whole, SplitsConfig(kind="nested", folds=2, inner_folds=16))


def test_a_plan_without_anybody_to_be_chosen_on_is_refused() -> None:
    slides = tuple(CohortSlide(slide_id=f"s{i}", patient_id=f"p{i}", label=str(i)) for i in range(16))
    whole = Cohort(slides=slides, task=Regression(columns=("age",)))
    assert [len(one.val) for one in make_plan(whole, SplitsConfig(kind="monte_carlo", test_fraction=0.7)).rounds] == [2]
    with pytest.raises(CohortError, match="none of the 2 patients that are not tested on can be spared"):
        make_plan(whole, SplitsConfig(kind="monte_carlo", test_fraction=0.85))


def test_preserved_sites_are_never_learned_from_and_tested_on() -> None:
    whole, plan = cohort(), plan_of("sites")
    sites = {s.slide_id: s.site for s in whole.slides}
    for one in plan.rounds:
        assert not {sites[s] for s in one.test} & {sites[s] for s in one.train + one.val}


@settings(deadline=None, max_examples=25)
@given(
    counts=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=4, max_size=7),
    folds=st.integers(2, 3),
    seed=st.integers(0, 99),
)
def test_few_sites_are_dealt_as_evenly_as_can_be(counts: list[tuple[int, int]], folds: int, seed: int) -> None:
    table = np.array(counts, dtype=np.int64)
    found = unevenness(even_folds(table, folds, np.random.default_rng(seed)), table, folds)
    every = (np.array(dealt) for dealt in itertools.product(range(folds), repeat=len(table)) if len({*dealt}) == folds)
    assert found == pytest.approx(min(unevenness(dealt, table, folds) for dealt in every), abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_no_move_of_a_site_and_no_swap_of_two_makes_folds_more_even(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts, folds = rng.integers(0, 60, (23, 3)), 4
    dealt = even_folds(counts, folds, rng)
    least = unevenness(dealt, counts, folds) - 1e-9
    for one in range(len(counts)):
        for fold in range(folds):
            moved = dealt.copy()
            moved[one] = fold
            assert unevenness(moved, counts, folds) >= least
        for other in range(one):
            swapped = dealt.copy()
            swapped[[one, other]] = dealt[[other, one]]
            assert unevenness(swapped, counts, folds) >= least


def test_sites_that_share_a_patient_stay_together() -> None:
    sites = {"a": ["x", "y"], "b": ["x"], "c": ["y"], "d": ["z"], "e": ["w"]}
    for seed in range(5):
        parts = site_folds(sites, dict.fromkeys(sites, "n"), 3, np.random.default_rng(seed))
        assert any({"a", "b", "c"} <= part for part in parts)


def test_a_patient_without_a_site_is_named() -> None:
    with pytest.raises(CohortError, match=r"'b'.*site column"):
        site_folds({"a": ["x"], "b": [""]}, {"a": "n", "b": "n"}, 2, np.random.default_rng(0))


@pytest.mark.parametrize("name", ["sites", "external"])
def test_sites_that_differ_in_case_alone_are_refused_where_sites_are_kept_apart(name: str) -> None:
    whole = cohort()
    shouted = replace(whole.slides[0], patient_id="p99", slide_id="s99", site="Site1")
    with pytest.raises(CohortError, match=r"sites 'Site1' \(1 slides\) and 'site1' \(\d+ slides\) differ in case"):
        plan_of(name, replace(whole, slides=(shouted, *whole.slides)))
    plan_of("kfold", replace(whole, slides=(shouted, *whole.slides)))


def test_too_few_sites_are_refused() -> None:
    with pytest.raises(CohortError, match=r"2 sites .* 3 folds"):
        make_plan(cohort(sites=2), SplitsConfig(folds=3, preserve_sites=True))


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    for name in KINDS:
        plan = plan_of(name)
        write_plan(tmp_path / "splits.json", plan)
        again = read_plan(tmp_path / "splits.json")
        assert again == plan
        assert again.digest == plan.digest


def test_a_file_changed_by_hand_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    write_plan(path, plan_of("kfold"))
    facts = json.loads(path.read_text(encoding="utf-8"))
    facts["rounds"][0]["train"] = facts["rounds"][0]["train"][1:]
    path.write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(CohortError, match="changed after it was made"):
        read_plan(path)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 3}', "nonsense", '{"format": "wsimil splits", "version": 1}']
)
def test_what_is_no_splits_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "splits.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CohortError, match=r"splits\.json"):
        read_plan(path)


SLIDES = {"a1": ("a", "n"), "a2": ("a", "n"), "b1": ("b", "t"), "c1": ("c", "n")}


def planted(**sides: tuple[str, ...]) -> SplitPlan:
    return SplitPlan(kind="published", made={}, slides=SLIDES, rounds=(Round(name="0", **sides),))


def test_a_patient_on_two_sides_stops_with_the_names() -> None:
    with pytest.raises(CohortError, match=r"patient 'a' is on two sides, with slide 'a1' in train and 'a2' in test"):
        planted(train=("a1",), val=("b1",), test=("a2",))


def test_a_slide_on_two_sides_stops_with_its_name() -> None:
    with pytest.raises(CohortError, match="slide 'b1' is in train and in val"):
        planted(train=("a1", "b1"), val=("b1",), test=())


def test_a_slide_that_the_plan_does_not_know_stops_with_its_name() -> None:
    with pytest.raises(CohortError, match="round 0: slide 'z' is not among the slides of the plan"):
        planted(train=("a1",), val=("b1", "z"))


def test_one_content_under_two_names_stops_with_the_names() -> None:
    plan = planted(train=("a1", "a2"), val=("b1",), test=("c1",))
    plan.refuse_twins({"a1": "x", "a2": "x", "b1": "y", "c1": ""})
    with pytest.raises(CohortError, match=r"'a2' \(train\) and 'c1' \(test\) are one and the same image"):
        plan.refuse_twins({"a1": "z", "a2": "x", "b1": "y", "c1": "x"})


def changed(whole: Cohort, **given: str) -> Cohort:
    return replace(whole, slides=(replace(whole.slides[0], **given), *whole.slides[1:]))


def test_a_cohort_that_changed_since_is_refused_by_name() -> None:
    whole, plan = cohort(sites=3), plan_of("kfold", cohort(sites=3))
    single = next(s for s in whole.slides if sum(o.patient_id == s.patient_id for o in whole.slides) == 1)
    relabelled = replace(
        whole,
        slides=tuple(replace(s, label="t" if s.label == "n" else "n") if s is single else s for s in whole.slides),
    )
    with pytest.raises(CohortError, match=f"1 slides .* another patient or target now: '{single.slide_id}'"):
        plan.in_round(relabelled, "0")
    with pytest.raises(CohortError, match="p999"):
        plan.in_round(changed(whole, patient_id="p999"), "0")
    with pytest.raises(CohortError, match="are not in the splits: 'new'"):
        plan.in_round(changed(whole, slide_id="new"), "0")


def test_other_slides_of_a_patient_are_taken_where_he_is_a_bag() -> None:
    whole = cohort(sites=3)
    firsts = replace(whole, slides=tuple(slide for slide in whole.slides if slide.slide_id.endswith("-0")))
    plan = plan_of("kfold", firsts)
    with pytest.raises(CohortError, match="are not in the splits"):
        plan.in_round(whole, "0")
    found = plan.in_round(whole, "0", bag="patient")
    split_of = {slide.patient_id: slide.split for slide in plan.in_round(firsts, "0").slides}
    assert [(s.slide_id, s.split) for s in found.slides] == [(s.slide_id, split_of[s.patient_id]) for s in whole.slides]
    others = len(whole.slides) - len(firsts.slides)
    assert [str(f).partition(":")[0] for f in found.findings] == [
        f"{others} slides are not in round 0 and follow their patients"
    ]
    stranger = CohortSlide(slide_id="new", patient_id="p999", label="n")
    with pytest.raises(CohortError, match="are not in the splits: 'new'"):
        plan.in_round(replace(whole, slides=(*whole.slides, stranger)), "0", bag="patient")
    last = next(slide for slide in whole.slides if not slide.slide_id.endswith("-0"))
    relabelled = replace(last, label="t" if last.label == "n" else "n")
    with pytest.raises(CohortError, match=f"another patient or target now: '{last.slide_id}'"):
        plan.in_round(replace(whole, slides=(relabelled,), task=whole.task), "0", bag="patient")


def test_a_split_column_that_tests_on_others_is_refused() -> None:
    whole, plan = cohort(), plan_of("kfold")
    trained = next(s for s in whole.slides if s.slide_id in plan.rounds[0].train)
    opposed = tuple(replace(s, split="test") if s.patient_id == trained.patient_id else s for s in whole.slides)
    with pytest.raises(CohortError, match="is test in the cohort's split column and train in round 0"):
        plan.in_round(replace(whole, slides=opposed), "0")


def test_what_a_round_leaves_out_is_counted() -> None:
    plan = plan_of("nested")
    drawn = plan.in_round(cohort(), "0.1")
    assert not drawn.of("test")
    assert any("no side of round 0.1" in str(finding) for finding in drawn.findings)
    assert len(drawn.slides) < len(cohort().slides)


def test_a_round_of_none_of_the_slides_is_refused() -> None:
    whole, plan = cohort(), plan_of("nested")
    apart = tuple(s for s in whole.slides if s.slide_id in plan.round("0").test)
    with pytest.raises(CohortError, match=r"round 0\.0 of the splits holds none of the \d+ slides"):
        plan.in_round(replace(whole, slides=apart), "0.0")


def test_a_missing_round_is_answered_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="wanted one of 0, 1, 2, 3; give it with --round"):
        plan_of("kfold").round("7")
    with pytest.raises(ConfigError, match="--round"):
        plan_of("kfold").round(None)
    single = planted(train=("a1",), val=("b1",))
    assert single.round(None) is single.round("0") is single.rounds[0]
    with pytest.raises(ConfigError, match="round '1': wanted one of 0"):
        single.round("1")


@pytest.mark.parametrize("count", [0, 2])
def test_rounds_of_a_plan_are_told_apart_by_name(count: int) -> None:
    one = planted(train=("a1",), val=("b1",)).rounds[0]
    with pytest.raises(CohortError, match="rounds of a plan have names of their own"):
        SplitPlan(kind="published", made={}, slides=SLIDES, rounds=(one,) * count)


def test_options_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="preserve_sites: means nothing for kind monte_carlo"):
        make_plan(cohort(), SplitsConfig(kind="monte_carlo", preserve_sites=True))


def test_columns_of_the_cohort_become_rounds() -> None:
    whole = cohort()
    numbered = replace(whole, slides=tuple(replace(s, fold=int(s.patient_id[1:]) // 2 % 2) for s in whole.slides))
    named = tuple(replace(s, split="train" if int(s.patient_id[1:]) // 2 % 2 else "test") for s in whole.slides)
    for own in (numbered, replace(whole, slides=named)):
        with pytest.raises(CohortError, match="kind column"):
            make_plan(own, SplitsConfig())
    by_fold = replace(whole, slides=tuple(replace(s, fold=int(s.patient_id[1:]) % 2) for s in whole.slides))
    both = replace(by_fold, slides=tuple(replace(s, split="train") for s in by_fold.slides))
    with pytest.raises(CohortError, match="a split column and a fold column"):
        make_plan(both, SplitsConfig(kind="column"))
    plan = make_plan(by_fold, SplitsConfig(kind="column"))
    assert [one.name for one in plan.rounds] == ["0", "1"]
    assert patients(plan, plan.rounds[1].test) == {p for p in whole.patients if int(p[1:]) % 2 == 1}
