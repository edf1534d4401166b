"""The answer without some tiles: what the closed form says is what the model says of the reduced bag, or it is not offered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.viewer.conftest import Serve
from tests.viewer.made_study import MadeStudy, make_run, write_cohort
from wsimil.bags import FeatureBag
from wsimil.evaluation.attribution import scored
from wsimil.evaluation.attribution.scored import LRP
from wsimil.evaluation.calibration import Calibration
from wsimil.evaluation.decision import Decision, LabelDecision, load_decided, save_decision
from wsimil.evaluation.predictor import predict
from wsimil.evaluation.threshold import Threshold
from wsimil.export import scores
from wsimil.export.answers import AnswerRule
from wsimil.export.scores import ScoreTable, read_scores, score_table
from wsimil.export.viewer.what_if import NotClosedError, closed_form, head_mix
from wsimil.mil import registry
from wsimil.mil.facts import ModelFacts, read_facts
from wsimil.mil.saved import load_model
from wsimil.stages import predict as predict_stage
from wsimil.store import open_store
from wsimil.targets import Classification, MultiLabel, Ordinal, Regression, Survival, Task
from wsimil.testing.store_laws import make_bag

TILES, DIM = 150, 11

# Every way in which a method's closed form may go, and hyperparameters under which it has none.
VARIANTS = [
    ("abmil", {}, "single"),
    ("abmil", {"gated": False, "hidden_dim": None}, "single"),
    ("pooling", {"pool": "mean"}, "uniform"),
    ("pooling", {"pool": "mean", "level": "feature"}, "uniform"),
    ("pooling", {"pool": "max"}, None),
    ("clam", {}, "single"),
    ("clam", {"branches": "multi"}, "output"),
    ("acmil", {}, "mean"),
    ("acmil", {"branches": 1}, "mean"),
    ("acmil", {"attention": "multihead"}, None),
    ("mhim", {"base": {"name": "abmil"}}, "single"),
    ("mhim", {"base": {"name": "clam", "branches": "multi"}}, "output"),
    ("mhim", {"base": {"name": "transmil"}}, None),
    ("mhim", {"base": {"name": "abmil"}, "recycle": {"at_inference": True}}, None),
    *((name, {}, None) for name in ("transmil", "dsmil", "dtfd", "rrt", "multihead")),
]


def test_every_method_is_among_the_variants() -> None:
    assert {name for name, _, _ in VARIANTS} == set(registry.names())


@pytest.fixture(scope="module")
def bag() -> FeatureBag:
    return make_bag("slide-1", n=TILES, dim=DIM, dtype="float32", seed=5)


def made_run(folder: Path, bag: FeatureBag, **wishes: object) -> Path:
    """A model of drawn weights for the bag's features."""
    features = folder / "features"
    open_store(features, mode="w").write(bag)
    return make_run(folder / "run", features, **wishes)  # type: ignore[arg-type]


def without(bag: FeatureBag, kept: np.ndarray) -> FeatureBag:
    grid = replace(bag.grid, xy0=bag.grid.xy0[kept], tissue=bag.grid.tissue[kept])
    return replace(bag, grid=grid, features=np.ascontiguousarray(bag.features[kept]), quality={})


def subsets() -> list[np.ndarray]:
    """Tiles that are kept: many, half, few, one."""
    rng = np.random.default_rng(2)
    drawn = [rng.random(TILES) < share for share in (0.95, 0.5, 0.5, 0.1)]
    return [*drawn, np.arange(TILES) == 77]


@pytest.mark.parametrize(("method", "config", "mix"), VARIANTS, ids=lambda value: str(value) if value else "-")
def test_a_closed_form_is_what_the_model_says_of_the_reduced_bag(
    method: str, config: dict[str, object], mix: str | None, bag: FeatureBag, tmp_path: Path
) -> None:
    run = made_run(tmp_path, bag, method=method, config=config)
    facts, trained = ModelFacts.of(read_facts(run), "model.json"), load_model(run)
    table = score_table(next(predict(trained, [bag])))
    found = head_mix(facts.method, facts.config)
    assert found == mix
    rule = AnswerRule(task=table.task)
    if mix is None:
        with pytest.raises(NotClosedError):
            closed_form(table, found, rule)
        return
    form = closed_form(table, found, rule)
    spread = []
    for kept in subsets():
        wanted = next(predict(trained, [without(bag, kept)]))
        np.testing.assert_allclose(rule.values(form.logits(kept)), wanted.values, rtol=0, atol=1e-5)
        scale = 1 + np.abs(wanted.logits)
        np.testing.assert_allclose(form.logits(kept) / scale, wanted.logits / scale, rtol=0, atol=1e-5)
        spread.append(wanted.logits)
    assert np.ptp(np.stack(spread), axis=0).max() > 0.01, "these subsets say nothing"


def test_a_mix_that_is_not_the_methods_is_refused_or_told_by_the_model(bag: FeatureBag, tmp_path: Path) -> None:
    """DTFD's attention and contributions sum as ABMIL's do, and yet the form is not closed: the method's name decides."""
    trained = load_model(made_run(tmp_path, bag, method="dtfd"))
    table = score_table(next(predict(trained, [bag])))
    form = closed_form(table, "single", AnswerRule(task=table.task))  # passes all checks on the table
    kept = subsets()[1]
    wanted = next(predict(trained, [without(bag, kept)]))
    assert np.abs(form.logits(kept) - wanted.logits).max() > 1e-3


def edited(table: ScoreTable, **changes: object) -> ScoreTable:
    return replace(table, **changes)  # type: ignore[arg-type]


def test_a_table_that_breaks_the_form_gets_none(bag: FeatureBag, tmp_path: Path) -> None:
    trained = load_model(made_run(tmp_path, bag))
    table = score_table(next(predict(trained, [bag])))
    rule = AnswerRule(task=table.task)
    closed_form(table, "single", rule)
    scores = table.scores.copy()
    scores[:, 0] /= 2
    with pytest.raises(NotClosedError, match="sum to 1"):
        closed_form(edited(table, scores=scores), "single", rule)
    scores = table.scores.copy()
    scores[3] = np.nan
    with pytest.raises(NotClosedError, match="scored"):
        closed_form(edited(table, scores=scores), "single", rule)
    with pytest.raises(NotClosedError, match="add up"):
        closed_form(edited(table, bias=table.bias + 1), "single", rule)
    with pytest.raises(NotClosedError, match="contributions"):
        closed_form(edited(table, scores=table.scores[:, :1], score_names=table.score_names[:1]), "single", rule)
    with pytest.raises(NotClosedError, match="attentions"):
        closed_form(edited(table, scores=table.scores[:, 1:], score_names=table.score_names[1:]), "single", rule)
    with pytest.raises(NotClosedError, match="calibrated"):
        closed_form(edited(table, values=table.values[::-1].copy()), "single", rule)


def test_a_slide_of_a_patient_has_no_closed_form_however_little_attention_others_have(
    bag: FeatureBag, tmp_path: Path
) -> None:
    """What little they have is most of it once the tiles that have the rest are left out."""
    run = made_run(tmp_path / "run", bag)
    table = score_table(next(predict(load_model(run), [bag])))
    rule, mix = AnswerRule(task=table.task), head_mix("abmil", {})
    assert closed_form(table, mix, rule).mix == "single"
    with pytest.raises(NotClosedError, match="of all slides of a patient"):
        closed_form(edited(table, model={**table.model, "patient": "p"}), mix, rule)


def test_nothing_left_is_no_answer(bag: FeatureBag, tmp_path: Path) -> None:
    trained = load_model(made_run(tmp_path, bag))
    table = score_table(next(predict(trained, [bag])))
    form = closed_form(table, "single", AnswerRule(task=table.task))
    with pytest.raises(ValueError, match="nothing is left"):
        form.logits(np.zeros(TILES, np.bool_))


TASKS: list[tuple[Task, str]] = [
    (Classification(classes=("a", "b", "c")), "softmax"),
    (MultiLabel(columns=("er", "pr")), "sigmoid"),
    (Ordinal(levels=("one", "two", "three")), "corn"),
    (Regression(columns=("ki67",), unit="%", mean=(60.0,), scale=(10.0,)), "linear"),
    (Survival(model="cox", horizons=(6.0, 24.0), baseline=(0.4, 1.6)), "cox"),
    (Survival(model="hazard", horizons=(6.0, 24.0), edges=(5.0, 12.0, 30.0)), "hazard"),
]


@pytest.mark.parametrize(("task", "kind"), TASKS, ids=[kind for _, kind in TASKS])
def test_every_task_answers_without_tiles_and_says_by_which_link(
    task: Task, kind: str, bag: FeatureBag, tmp_path: Path
) -> None:
    trained = load_model(made_run(tmp_path, bag, task=task, sharp=5.0))
    table = score_table(next(predict(trained, [bag])))
    rule = AnswerRule(task=table.task)
    form = closed_form(table, "single", rule)
    for kept in subsets()[:2]:
        wanted = next(predict(trained, [without(bag, kept)]))
        np.testing.assert_allclose(rule.values(form.logits(kept)), wanted.values, rtol=1e-5, atol=1e-5)
    assert rule.link()["kind"] == kind


CURVE = ((0.1, 0.0), (0.4, 0.3), (0.9, 1.0))
CALIBRATIONS = [
    Calibration(kind="temperature", classes=2, fitted_on="val", rows=40, temperature=2.5),
    Calibration(kind="isotonic", classes=2, fitted_on="val", rows=40, curves=(CURVE,)),
    Calibration(kind="bias_corrected", classes=2, fitted_on="val", rows=40, temperature=1.5, shifts=(0.4, -0.4)),
]


@pytest.mark.parametrize("calibration", CALIBRATIONS, ids=lambda one: one.kind)
def test_calibration_is_applied_as_predict_does(
    calibration: Calibration, study: MadeStudy, tmp_path: Path, serve: Serve
) -> None:
    run = make_run(tmp_path / "run", study.features, calibration=calibration, sharp=4.0)
    options = predict_stage.PredictOptions(device="cpu", heatmaps=False)
    predict_stage.predict(run, study.features, tmp_path / "predictions", options=options)
    trained, _ = load_decided(run)
    client = serve(tmp_path / "predictions")  # no run at hand: predictions say how they were calibrated
    case = client.get("cases/1.json").json()
    assert case["whatif"]["form"] == "closed"
    assert case["whatif"]["link"] == AnswerRule(task=trained.task, calibration=calibration).link()
    bag = open_store(study.features, mode="r").read("s1")
    kept = np.arange(len(bag)) % 3 > 0
    answered = client.post("cases/1/what-if", {"without": np.flatnonzero(~kept).tolist()}).json()
    wanted = next(predict(trained, [without(bag, kept)]))
    np.testing.assert_allclose(answered["values"], wanted.values, rtol=0, atol=1e-5)
    np.testing.assert_allclose(answered["logits"], wanted.logits, rtol=1e-5, atol=1e-5)


def test_labels_are_calibrated_each_in_its_own_way(study: MadeStudy, tmp_path: Path, serve: Serve) -> None:
    task = MultiLabel(columns=("er", "pr", "her2"))
    run = make_run(tmp_path / "run", study.features, task=task, sharp=4.0)
    labels = {name: LabelDecision(calibration=one) for name, one in zip(("er", "her2"), CALIBRATIONS[:2], strict=True)}
    save_decision(run, Decision(model=load_model(run).digest, labels=labels))
    options = predict_stage.PredictOptions(device="cpu", heatmaps=False)
    predict_stage.predict(run, study.features, tmp_path / "predictions", options=options)
    trained, _ = load_decided(run)
    bag = open_store(study.features, mode="r").read("s1")
    kept = np.arange(len(bag)) % 3 > 0
    wanted = next(predict(trained, [without(bag, kept)]))
    for client in (serve(tmp_path / "predictions"), serve(tmp_path / "predictions", run=run)):
        link = client.get("cases/1.json").json()["whatif"]["link"]
        assert (link["kind"], [one["kind"] for one in link["each"]]) == ("labels", ["softmax", "softmax", "isotonic"])
        answered = client.post("cases/1/what-if", {"without": np.flatnonzero(~kept).tolist()}).json()
        np.testing.assert_allclose(answered["values"], wanted.values, rtol=0, atol=1e-5)


def make_silent(predictions: Path) -> None:
    """As those of an earlier version, they say neither how they were calibrated nor whose answers they are."""
    text = (predictions / "predictions.json").read_text()
    (predictions / "predictions.json").write_text(text.replace('"calibration"', '"another"'))
    table = pq.read_table(predictions / "predictions.parquet")
    pq.write_table(table.replace_schema_metadata(None), predictions / "predictions.parquet")


def test_predictions_that_do_not_say_how_they_were_calibrated_get_no_closed_form(
    study: MadeStudy, tmp_path: Path, serve: Serve
) -> None:
    run = make_run(tmp_path / "run", study.features, calibration=CALIBRATIONS[0], sharp=4.0)
    options = predict_stage.PredictOptions(device="cpu", heatmaps=False)
    out = tmp_path / "predictions"
    predict_stage.predict(run, study.features, out, options=options)
    make_silent(out)
    client = serve(out)
    what_if = client.get("cases/1.json").json()["whatif"]
    assert what_if["form"] is None
    assert "--run" in what_if["reason"]
    assert client.post("cases/1/what-if", {"without": [1]}).status == 422
    assert serve(out, run=run).get("cases/1.json").json()["whatif"]["form"] == "closed"


def test_a_method_without_a_closed_form_is_recomputed_by_the_server(
    study: MadeStudy, tmp_path: Path, serve: Serve
) -> None:
    run = make_run(tmp_path / "run", study.features, method="transmil", config={"hidden_dim": 64}, sharp=1.0)
    options = predict_stage.PredictOptions(device="cpu", heatmaps=False)
    predict_stage.predict(run, study.features, tmp_path / "predictions", options=options)
    assert serve(tmp_path / "predictions").get("cases/0.json").json()["whatif"]["form"] is None
    client = serve(tmp_path / "predictions", run=run, features=study.features)
    assert client.get("cases/0.json").json()["whatif"] == {"form": "server"}
    bag = open_store(study.features, mode="r").read("s0")
    kept = np.arange(len(bag)) > 20
    answered = client.post("cases/0/what-if", {"without": list(range(21))}).json()
    wanted = next(predict(load_model(run), [without(bag, kept)]))
    np.testing.assert_allclose(answered["values"], wanted.values, rtol=0, atol=1e-5)
    assert np.abs(wanted.values - client.get("cases/0.json").json()["values"]).max() > 1e-3
    assert answered["predicted"] == wanted.predicted
    assert client.post("cases/0/what-if", {"without": list(range(len(bag)))}).status == 422


def test_a_slide_that_is_answered_for_alone_is_recomputed_from_its_own_features_alone(
    study: MadeStudy, tmp_path: Path, serve: Serve
) -> None:
    """Without a cohort file all slides are of one patient, whose name is empty: one that was missing refused all of them."""
    run = make_run(tmp_path / "run", study.features, method="transmil", config={"hidden_dim": 64})
    options = predict_stage.PredictOptions(device="cpu", heatmaps=False)
    predict_stage.predict(run, study.features, tmp_path / "predictions", options=options)
    open_store(tmp_path / "own", mode="w").write(open_store(study.features, mode="r").read("s0"))
    client = serve(tmp_path / "predictions", run=run, features=tmp_path / "own")
    assert client.post("cases/0/what-if", {"without": [1]}).status == 200


@pytest.mark.parametrize("method", ["abmil", "pooling"])
def test_a_slide_of_a_patient_is_recomputed_with_the_patients_other_slides(
    method: str, study: MadeStudy, tmp_path: Path, serve: Serve
) -> None:
    from wsimil.evaluation.patient import predict_patient

    run = make_run(tmp_path / "run", study.features, method=method, bag="patient")
    cohort = write_cohort(tmp_path / "cohort.csv", ["s0", "s1", "s2", "s3"])
    options = predict_stage.PredictOptions(device="cpu", heatmaps=False)
    predict_stage.predict(run, study.features, tmp_path / "predictions", options=options, cohort_csv=cohort)
    client = serve(tmp_path / "predictions", run=run, features=study.features)
    cases = client.get("index.json").json()["cases"]
    assert [(case["slide_id"], case["patient_id"]) for case in cases] == [
        ("s0", "p1"), ("s1", "p1"), ("s2", "p2"), ("s3", "p3"),
    ]  # fmt: skip
    store = open_store(study.features, mode="r")
    first, second = store.read("s0"), store.read("s1")
    kept = np.arange(len(second)) % 2 > 0
    answered = client.post("cases/1/what-if", {"without": np.flatnonzero(~kept).tolist()}).json()
    wanted = predict_patient(load_model(run), "p1", [first, without(second, kept)])[0]
    assert np.abs(wanted.values - client.get("cases/1.json").json()["values"]).max() > 1e-3
    np.testing.assert_allclose(answered["values"], wanted.values, rtol=0, atol=1e-5)
    whole = client.post("cases/1/what-if", {"without": list(range(len(second)))}).json()
    of_first = predict_patient(load_model(run), "p1", [first])[0]
    np.testing.assert_allclose(whole["values"], of_first.values, rtol=0, atol=1e-5)
    only = len(store.read("s2"))
    assert client.post("cases/2/what-if", {"without": list(range(only))}).status == 422


@pytest.mark.parametrize(
    "tree",
    [
        {},
        [],
        {"without": 3},
        {"without": ["1"]},
        {"without": [True]},
        {"without": [-1]},
        {"without": [10**6]},
        {"without": [], "x": 1},
    ],
)
def test_a_wish_that_cannot_be_meant_is_refused(tree: object, study: MadeStudy, serve: Serve) -> None:
    assert serve(study.predictions).post("cases/0/what-if", tree).status == 422


def test_other_features_than_those_predicted_are_refused(study: MadeStudy, tmp_path: Path, serve: Serve) -> None:
    run = make_run(tmp_path / "run", study.features, method="transmil", config={"hidden_dim": 64})
    options = predict_stage.PredictOptions(device="cpu", heatmaps=False)
    predict_stage.predict(run, study.features, tmp_path / "predictions", options=options)
    store, other = open_store(study.features, mode="r"), tmp_path / "other"
    bag = store.read("s0")
    open_store(other, mode="w").write(without(bag, np.arange(len(bag)) > 0))
    client = serve(tmp_path / "predictions", run=run, features=other)
    assert client.post("cases/0/what-if", {"without": [1]}).status == 409
    assert "not those that were predicted" in client.heard[-1]
    assert read_scores(tmp_path / "predictions" / "scores" / "s0.parquet").slide_id == "s0"


def test_contributions_that_are_no_exact_sums_offer_no_closed_form(bag: FeatureBag, tmp_path: Path) -> None:
    """They add up to the whole bag's logits all the same, and would tell a wrong answer of every part of it."""
    table = score_table(next(predict(load_model(made_run(tmp_path, bag)), [bag])))
    closed_form(table, "single", AnswerRule(task=table.task))
    by_lrp = replace(table, score_rules={**table.score_rules, "contribution:tumor": LRP})
    with pytest.raises(NotClosedError, match="no exact sums"):
        closed_form(by_lrp, "single", AnswerRule(task=table.task))
    assert scored.EXACT == scores.EXACT


@pytest.mark.parametrize("method", ["abmil", "transmil"])
def test_a_run_that_was_calibrated_anew_moves_nothing_that_was_predicted(
    method: str, study: MadeStudy, tmp_path: Path, serve: Serve
) -> None:
    """Its weights stay the same, so nothing but the predictions tells by which decision they were made."""
    run = make_run(tmp_path / "run", study.features, method=method, config={}, sharp=4.0)
    options = predict_stage.PredictOptions(device="cpu", heatmaps=False)
    predict_stage.predict(run, study.features, tmp_path / "predictions", options=options)
    before = serve(tmp_path / "predictions")
    fitted = {"positive": 20, "sensitivity": 1.0, "specificity": 0.0}
    threshold = Threshold(value=1e-6, rule="sensitivity", fitted_on="val", rows=40, **fitted)
    decision = Decision(model=load_model(run).digest, calibration=CALIBRATIONS[2], threshold=threshold)
    save_decision(run, decision)
    client = serve(tmp_path / "predictions", run=run, features=study.features)
    listed = [(case["predicted"], case["values"]) for case in before.get("index.json").json()["cases"]]
    assert [(case["predicted"], case["values"]) for case in client.get("index.json").json()["cases"]] == listed
    assert client.get("index.json").json()["thresholds"] == before.get("index.json").json()["thresholds"]
    answered = client.post("cases/1/what-if", {"without": []}).json()
    assert (answered["predicted"], answered["values"]) == (listed[1][0], pytest.approx(listed[1][1], abs=1e-5))
    if method == "abmil":
        alone = serve(tmp_path / "predictions", run=run).get("cases/1.json").json()["whatif"]
        assert alone == before.get("cases/1.json").json()["whatif"]


def test_features_that_no_longer_give_the_listed_answer_are_refused(
    study: MadeStudy, tmp_path: Path, serve: Serve
) -> None:
    """The other slide of the patient was extracted anew with fewer tiles, which the tiles of this slide cannot show."""
    run = make_run(tmp_path / "run", study.features, bag="patient", sharp=200.0)
    cohort = write_cohort(tmp_path / "cohort.csv", ["s0", "s1", "s2", "s3"])
    options = predict_stage.PredictOptions(device="cpu", heatmaps=False)
    predict_stage.predict(run, study.features, tmp_path / "predictions", options=options, cohort_csv=cohort)
    store, other = open_store(study.features, mode="r"), open_store(tmp_path / "other", mode="w")
    second = store.read("s1")
    other.write(store.read("s0"))
    other.write(without(second, np.arange(len(second)) < len(second) // 4))
    client = serve(tmp_path / "predictions", run=run, features=tmp_path / "other")
    assert client.post("cases/0/what-if", {"without": [0]}).status == 409
    assert "another one of its patient, are not those that were predicted" in client.heard[-1]
    assert serve(tmp_path / "predictions", run=run, features=study.features).post(
        "cases/0/what-if", {"without": [0]}
    ).status == 200  # fmt: skip


def test_predictions_of_another_calibration_than_any_that_is_known_are_not_recomputed(
    study: MadeStudy, tmp_path: Path, serve: Serve
) -> None:
    run = make_run(tmp_path / "run", study.features, method="transmil", config={}, calibration=CALIBRATIONS[0])
    options = predict_stage.PredictOptions(device="cpu", heatmaps=False)
    out = tmp_path / "predictions"
    predict_stage.predict(run, study.features, out, options=options)
    make_silent(out)
    save_decision(run, Decision(model=load_model(run).digest, calibration=CALIBRATIONS[2]))
    client = serve(out, run=run, features=study.features)
    what_if = client.get("cases/1.json").json()["whatif"]
    assert what_if["form"] is None
    assert "calibrated is not known" in what_if["reason"]
    assert client.post("cases/1/what-if", {"without": [1]}).status == 422
