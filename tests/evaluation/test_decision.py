"""What is fitted on the validation split goes with the model, and only what can be fitted soundly is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wsimil.errors import ConfigError, ModelError
from wsimil.evaluation.binary import BinaryCases
from wsimil.evaluation.calibration import fit_bias_corrected
from wsimil.evaluation.conformal import fit_conformal
from wsimil.evaluation.decision import (
    Decision,
    DecisionConfig,
    ValidationAnswers,
    fit_decision,
    load_decision,
    mean_feature,
    save_decision,
)
from wsimil.evaluation.ood import fit_ood
from wsimil.evaluation.threshold import youden_threshold
from wsimil.mil import registry
from wsimil.mil.saved import TrainedModel
from wsimil.targets import Classification, MultiLabel, Regression, Task

DIM = 5


def trained(task: Task | None = None) -> TrainedModel:
    task = task or Classification(classes=("n", "t"))
    model = registry.build("pooling", {}, in_dim=DIM, num_classes=2)
    return TrainedModel(model=model, method="pooling", task=task, features=None, training={}, digest="d" * 64)


def answers(count: int = 60, *, classes: int = 2, seed: int = 0) -> ValidationAnswers:
    rng = np.random.default_rng(seed)
    targets = np.arange(count) % classes
    logits = 4 * np.eye(classes)[targets] + rng.normal(0, 4, (count, classes))
    return ValidationAnswers(logits=logits, targets=targets, patients=tuple(f"p{i}" for i in range(count)))


def means(count: int = 40, *, seed: int = 1) -> tuple[np.ndarray, list[str]]:
    return np.random.default_rng(seed).normal(size=(count, DIM)), [f"q{i}" for i in range(count)]


def fitted(val: ValidationAnswers | None = None, task: Task | None = None, **given: object) -> Decision:
    rows, owners = means()
    config = DecisionConfig.model_validate(given)
    return fit_decision(config, trained(task), val or answers(), training_means=rows, training_patients=owners)


def test_probabilities_are_those_of_the_fitted_calibration_and_decided_at_the_fitted_threshold() -> None:
    val = answers()
    decision = fitted(val)
    model = decision.applied(trained())
    expected = fit_bias_corrected(val.logits, val.targets, fitted_on="val").apply(val.logits)
    np.testing.assert_allclose(model.values(val.logits), expected, rtol=1e-12)
    assert decision.threshold is not None
    cases = BinaryCases(targets=val.targets, probabilities=expected[:, 1], threshold=decision.threshold.value)
    found = cases.values()
    assert found["sensitivity"] == pytest.approx(decision.threshold.sensitivity)
    assert found["specificity"] == pytest.approx(decision.threshold.specificity)
    words = [model.task.decided(row) for row in expected]
    assert words == ["nt"[one] for one in cases.decided]


def test_a_threshold_is_chosen_by_the_rule_and_the_costs_that_are_asked_for() -> None:
    val = answers(80)
    p = fitted(val).applied(trained()).values(val.logits)[:, 1]

    def errors(at: float) -> tuple[int, int]:
        return int((p[val.targets == 1] < at).sum()), int((p[val.targets == 0] >= at).sum())

    def chosen(**given: object) -> tuple[int, int]:
        threshold = fitted(val, **given).threshold
        assert threshold is not None
        return errors(threshold.value)

    every = [errors(at) for at in [*p, 2.0]]
    # Of each class there are 40.
    misses, alarms = chosen(threshold="sensitivity", at_least=0.9)
    assert misses <= 4 < alarms == min(b for a, b in every if a <= 4)
    misses, alarms = chosen(threshold="specificity", at_least=0.9)
    assert alarms <= 4 < misses == min(a for a, b in every if b <= 4)
    for miss, alarm in ((9, 1), (1, 9)):
        found = chosen(threshold="cost", miss_cost=miss, false_alarm_cost=alarm)
        assert miss * found[0] + alarm * found[1] == min(miss * a + alarm * b for a, b in every)
        assert (found[0] < found[1]) == (miss > alarm)


def test_too_few_training_slides_flag_none_unless_it_is_asked_for() -> None:
    rows, owners = means(10)
    given = {"training_means": rows, "training_patients": owners}
    decision = fit_decision(DecisionConfig(), trained(), answers(), **given)
    assert decision.ood is None
    assert "no slide is flagged as unusual: flagging 0.05 of training-like slides needs 19" in decision.notes[0]
    with pytest.raises(ConfigError, match="needs 19 training slides"):
        fit_decision(DecisionConfig(ood="mahalanobis"), trained(), answers(), **given)


def test_the_same_decision_comes_back_from_disk(tmp_path: Path) -> None:
    for given in (
        {},
        {"calibration": "isotonic", "conformal": "aps"},
        {"calibration": "temperature"},
        {"ood": "knn"},
        {"ood": "none", "threshold": "none"},
    ):
        decision = fitted(**given)
        save_decision(tmp_path, decision)
        again = load_decision(tmp_path)
        assert again is not None
        assert again.to_json() == decision.to_json()
        rows, _ = means(9, seed=5)
        shares = decision.applied(trained()).values(answers(9).logits)
        for row, share in zip(rows, shares, strict=True):
            task = trained().task
            assert again.beside(share, row, task) == decision.beside(share, row, task)


def test_a_decision_of_other_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="belongs to other weights"):
        fitted().applied(replace(trained(), digest="e" * 64))
    save_decision(tmp_path, fitted())
    other = replace(fitted(), model="e" * 64)
    (tmp_path / "decision.json").rename(tmp_path / "kept.json")
    save_decision(tmp_path, other)
    (tmp_path / "kept.json").replace(tmp_path / "decision.json")
    with pytest.raises(ModelError, match=r"ood\.safetensors belongs to other weights"):
        load_decision(tmp_path)


def test_half_a_decision_is_refused(tmp_path: Path) -> None:
    save_decision(tmp_path, fitted())
    (tmp_path / "ood.safetensors").unlink()
    with pytest.raises(ModelError, match="copy the whole run folder"):
        load_decision(tmp_path)
    (tmp_path / "decision.json").write_text('{"format_version": 1}', encoding="utf-8")
    with pytest.raises(ModelError, match="cannot be read"):
        load_decision(tmp_path)
    (tmp_path / "decision.json").unlink()
    assert load_decision(tmp_path) is None


def test_few_patients_of_a_class_leave_probabilities_as_they_are_and_say_so() -> None:
    many = answers(60)
    few = replace(many, patients=tuple(f"p{i % 16}" for i in range(60)))
    decision = fitted(few)
    assert decision.calibration is None
    assert decision.threshold is None
    assert "8 patients of 'n', 10 are wanted" in decision.notes[0]
    assert "sets of plausible classes" not in decision.notes[0]
    assert "there are no sets of plausible classes: the validation" in fitted(few, conformal="lac").notes[0]
    assert fitted(few, fewest=8).threshold is not None


def test_a_perfect_validation_split_fits_no_temperature_and_says_so() -> None:
    val = answers()
    decision = fitted(replace(val, logits=9.0 * np.eye(2)[val.targets]), calibration="temperature")
    assert decision.calibration is None
    assert decision.threshold is not None
    assert "not calibrated" in decision.notes[0]


def test_answers_that_lean_to_one_side_are_brought_back_and_not_to_a_half() -> None:
    val, fresh = answers(80), answers(2000, seed=3)
    lean = np.array([0.0, 9.0])
    made = {name: fitted(replace(val, logits=val.logits + lean), calibration=name) for name in (None, "temperature")}
    p = {name: one.applied(trained()).values(fresh.logits + lean)[:, 1] for name, one in made.items()}
    away = {name: np.mean((one - fresh.targets) ** 2) for name, one in p.items()}
    assert away[None] < away["temperature"] - 0.05
    assert abs(p[None].mean() - 0.5) < 0.06 < p["temperature"].mean() - 0.5


def test_the_higher_probability_decides_as_it_did_where_no_threshold_does() -> None:
    val = answers(400)
    rows = np.flatnonzero((val.targets == 0) | (np.arange(400) < 40))  # one in eleven is of the second class
    rare = ValidationAnswers(
        logits=val.logits[rows], targets=val.targets[rows], patients=tuple(val.patients[row] for row in rows)
    )
    moved = {}
    for threshold in ("none", "youden"):
        decision = fitted(rare, threshold=threshold)
        assert decision.calibration is not None
        shares = decision.applied(trained()).values(rare.logits)
        moved[threshold] = (shares.argmax(axis=1) != rare.logits.argmax(axis=1)).mean()
    assert moved["none"] == 0 < moved["youden"]


def test_a_prediction_says_how_its_answer_was_calibrated() -> None:
    decision = fitted()
    assert decision.calibration is not None
    assert decision.applied(trained()).facts["calibration"] == decision.calibration.to_json()
    assert "calibration" not in trained().facts


def test_more_classes_keep_their_decisions() -> None:
    three = Classification(classes=("a", "b", "c"))
    val = answers(90, classes=3)
    decision = fitted(val, three)
    assert decision.calibration is not None
    assert decision.calibration.kind == "temperature"
    shares = decision.applied(trained(three)).values(val.logits)
    assert (shares.argmax(axis=1) == val.logits.argmax(axis=1)).all()


def test_sets_hold_the_true_class_as_often_as_stated() -> None:
    decision = fitted(answers(400), conformal="lac", coverage=0.9)
    fresh = answers(2000, seed=9)
    model = decision.applied(trained())
    said = [decision.beside(v, np.zeros(DIM), model.task)["plausible"] for v in model.values(fresh.logits)]
    held = np.mean(["nt"[t] in str(names).split(";") for t, names in zip(fresh.targets, said, strict=True)])
    assert abs(held - 0.9) < 0.035


def test_sets_are_fitted_on_the_first_slide_of_each_patient() -> None:
    val = replace(answers(120), patients=tuple(f"p{i // 2}" for i in range(120)))
    decision = fitted(val, conformal="lac", coverage=0.8, calibration="none")
    first = np.arange(0, 120, 2)
    shares = trained().task.values(val.logits[first])
    names = [val.patients[row] for row in first]
    assert decision.conformal == fit_conformal(
        val.targets[first], shares, names, kind="lac", coverage=0.8, fitted_on="val"
    )


def test_slides_far_from_training_are_flagged_and_others_seldom() -> None:
    decision = fitted()
    near, _ = means(400, seed=7)
    flags = [decision.beside(np.array([0.5, 0.5]), row, trained().task)["unusual"] for row in near]
    assert np.mean([flag == "yes" for flag in flags]) < 0.15
    assert decision.beside(np.array([0.5, 0.5]), np.full(DIM, 9.0), trained().task)["unusual"] == "yes"


def test_distances_are_of_the_kind_and_the_rate_that_are_asked_for() -> None:
    rows, owners = means()
    for kind, rate in (("knn", 0.2), ("mahalanobis", 0.1)):
        found = fitted(ood=kind, false_flags=rate).ood
        assert found is not None
        wanted = fit_ood(rows, owners, kind=kind, false_flags=rate)
        assert (found.kind, found.threshold, found.false_flags) == (kind, wanted.threshold, rate)


def test_what_means_nothing_is_refused_and_defaults_are_not() -> None:
    task = Regression(columns=("age",)).fitted(["3", "4"])
    numbers = replace(answers(), targets=np.zeros((60, 1)))
    assert fitted(numbers, task).ood is not None
    with pytest.raises(ConfigError, match=r"decision\.calibration: is for classes, the task is regression"):
        fitted(numbers, task, calibration="temperature")
    three = Classification(classes=("a", "b", "c"))
    assert fitted(answers(90, classes=3), three).threshold is None
    with pytest.raises(ConfigError, match=r"decision\.threshold: is for two classes, the task has 3"):
        fitted(answers(90, classes=3), three, threshold="youden")
    with pytest.raises(ConfigError, match="training slides"):
        fit_decision(
            DecisionConfig(ood="mahalanobis"),
            trained(),
            answers(),
            training_means=np.zeros((4, DIM)),
            training_patients="abcd",
        )


def test_the_mean_feature_is_the_mean(tmp_path: Path) -> None:
    features = np.random.default_rng(0).normal(size=(1000, DIM)).astype(np.float16)
    np.testing.assert_allclose(mean_feature(features), features.astype(np.float64).mean(axis=0), rtol=1e-12)


LABELS = MultiLabel(columns=("er", "pr", "rare"))


def three_labels(count: int = 80, *, seed: int = 3) -> ValidationAnswers:
    """Logits of `er` are shifted by 2, those of `pr` three times as large as they should be; `rare` three patients have."""
    rng = np.random.default_rng(seed)
    truth = np.stack([np.arange(count) % 2, np.arange(count) % 3 == 0, np.arange(count) < 3], axis=1).astype(np.int64)
    logits = 3.0 * truth - 1.5 + rng.normal(0, 1.5, truth.shape)
    logits[:, 0] += 2
    logits[:, 1] *= 3
    truth[::7, 1] = -1
    return ValidationAnswers(logits=logits, targets=truth, patients=tuple(f"p{i}" for i in range(count)))


def of_labels() -> TrainedModel:
    return replace(trained(LABELS), model=registry.build("pooling", {}, in_dim=DIM, num_classes=3))


def test_each_label_has_a_calibration_and_a_threshold_of_the_rows_where_it_is_known(tmp_path: Path) -> None:
    val = three_labels()
    decision = fit_decision(DecisionConfig(), of_labels(), val, training_means=None)
    assert set(decision.labels) == {"er", "pr"}
    assert any("rare 3" in note for note in decision.notes)
    save_decision(tmp_path, decision)
    again = load_decision(tmp_path)
    assert again is not None
    assert again.to_json() == decision.to_json()
    model = again.applied(of_labels())
    shares = model.values(val.logits)
    for index, name in enumerate(("er", "pr")):
        known = val.targets[:, index] >= 0
        z = val.logits[known, index]
        expected = fit_bias_corrected(np.stack([0 * z, z], axis=1), val.targets[known, index], fitted_on="val")
        assert expected.temperature is not None
        moved = z / expected.temperature + expected.shifts[1] - expected.shifts[0]
        np.testing.assert_allclose(shares[known, index], 1 / (1 + np.exp(-moved)), rtol=1e-12)
        threshold = decision.labels[name].threshold
        assert threshold is not None
        cases = BinaryCases(
            targets=val.targets[known, index], probabilities=shares[known, index], threshold=threshold.value
        )
        assert cases.values()["sensitivity"] == pytest.approx(threshold.sensitivity)
        assert cases.values()["specificity"] == pytest.approx(threshold.specificity)
        assert model.task.decides_at[index] == threshold.value
    assert model.task.decides_at[2] == 0.5
    np.testing.assert_allclose(shares[:, 2], 1 / (1 + np.exp(-val.logits[:, 2])), rtol=1e-12)
    said = [set(model.task.decided(row).split(";")) - {"-"} for row in shares]
    assert said == [
        {n for n, p, t in zip(LABELS.labels, row, model.task.decides_at, strict=True) if p >= t} for row in shares
    ]
    assert any(words != set(LABELS.decided(row).split(";")) - {"-"} for words, row in zip(said, shares, strict=True))


def test_labels_without_a_calibration_are_decided_by_the_probability_of_having_them() -> None:
    val = three_labels()
    decision = fit_decision(DecisionConfig(calibration="none"), of_labels(), val, training_means=None)
    for index, name in enumerate(("er", "pr")):
        known = val.targets[:, index] >= 0
        p = 1 / (1 + np.exp(-val.logits[known, index]))
        found = decision.labels[name].threshold
        assert found is not None
        assert found.value == pytest.approx(youden_threshold(val.targets[known, index], p, fitted_on="val").value)


def test_a_label_needs_patients_and_not_slides_that_have_it() -> None:
    rows = np.arange(40)
    targets = np.stack([rows < 10, rows >= 30], axis=1).astype(np.int64)  # of ten patients, and of five with two slides
    val = ValidationAnswers(
        logits=np.random.default_rng(0).normal(size=(40, 2)) + 2 * targets,
        targets=targets,
        patients=tuple(f"p{min(row, 30 + (row - 30) // 2)}" for row in rows),
    )
    decision = fit_decision(DecisionConfig(), trained(MultiLabel(columns=("er", "pr"))), val, training_means=None)
    assert set(decision.labels) == {"er"}
    assert any("(decision.fewest): pr 5" in note for note in decision.notes)


def test_labels_of_other_names_than_the_model_has_are_refused() -> None:
    decision = fit_decision(DecisionConfig(), of_labels(), three_labels(), training_means=None)
    other = replace(of_labels(), task=MultiLabel(columns=("er", "her2", "rare")))
    with pytest.raises(ModelError, match="speaks of labels that the model has not: pr"):
        decision.applied(other)


def test_several_labels_have_no_conformal_sets_and_may_have_nothing_fitted() -> None:
    with pytest.raises(ConfigError, match=r"decision\.conformal: is for classes, the task is multilabel"):
        fit_decision(DecisionConfig(conformal="lac"), of_labels(), three_labels(), training_means=None)
    none = DecisionConfig(calibration="none", threshold="none")
    assert not fit_decision(none, of_labels(), three_labels(), training_means=None).labels
