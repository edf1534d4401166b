"""All slides of a patient as one bag: learned from, answered for, and mapped slide by slide."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsimil.cohort import read_cohort
from wsimil.config import load_config
from wsimil.errors import CohortError, ConfigError, ModelError
from wsimil.evaluation.patient import predict_patient, stacked
from wsimil.export.scores import read_scores
from wsimil.mil.batch import pack
from wsimil.mil.saved import load_model
from wsimil.splits import SplitsConfig
from wsimil.stages.answered import read_known
from wsimil.stages.answers import Answer
from wsimil.stages.predict import PredictSummary, predict
from wsimil.stages.predict_options import PredictOptions
from wsimil.stages.splits import make as make_splits
from wsimil.stages.study.possible import refuse_impossible
from wsimil.stages.text import show_prediction
from wsimil.stages.train import TrainSummary, plan, train
from wsimil.stages.train_config import TrainConfig
from wsimil.stages.work_items import WorkItem
from wsimil.store import open_store
from wsimil.testing.store_laws import make_bag

PATIENTS = 40


def slides_of(patient: int) -> int:
    return 1 + patient % 3


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Patients of one to three slides, of which one alone shows the class; two slides more are empty or nobody's."""
    root = tmp_path_factory.mktemp("patients")
    store = open_store(root / "features", mode="w")
    lines = []
    for patient in range(PATIENTS):
        split = ("train", "val", "train", "test")[patient // 2 % 4]
        for number in range(slides_of(patient)):
            name = f"p{patient}_{number}"
            write(store, name, seed=3 * patient + number, shift=4.0 * (patient % 2) * (number == 0))
            lines.append(f"{name},p{patient},{'ab'[patient % 2]},{split}")
    write(store, "p7_empty", seed=900, shift=0, n=0)
    lines.append("p7_empty,p7,b,test")
    write(store, "stray", seed=901, shift=0)
    (root / "cohort.csv").write_text("\n".join(["slide_id,patient_id,label,split", *lines]) + "\n", encoding="utf-8")
    learn(root, root / "run")
    return root


def write(store, name: str, *, seed: int, shift: float, n: int = 9) -> None:
    bag = make_bag(name, n=n, dim=5, dtype="float32", seed=seed)
    features = np.array(bag.features)
    features[: n // 2, 0] += shift
    store.write(replace(bag, features=features, provenance=replace(bag.provenance, slide_digest=f"{seed:064x}")))


def learn(root: Path, out: Path, *, cohort: Path | None = None, **given: object) -> TrainSummary:
    options = {"device": "cpu", "bag": "patient", "fit.epochs": 30, "fit.lr": 5e-3, **given}
    config = load_config(TrainConfig, given=options)  # type: ignore[arg-type]
    return train(config, root / "features", cohort or root / "cohort.csv", out)


def one_label_each(place: Path, folder: Path, *, columns: int = 4, labelled: str = "0") -> Path:
    """The cohort file without the empty slide, and without labels of slides but those whose name ends in one of `labelled`."""
    rows = [row.split(",") for row in (place / "cohort.csv").read_text(encoding="utf-8").splitlines()]
    for row in rows[1:]:
        row[2] = row[2] if row[0][-1] in labelled else ""
    path = folder / "one_label_each.csv"
    lines = [",".join(row[:columns]) for row in rows if row[0] != "p7_empty"]
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return path


def refuse_other_answers(run: Path, place: Path, cohort: Path, out: Path) -> None:
    """What a run said of its val and test split is what it says when it predicts with the same cohort file."""
    options = PredictOptions(device="cpu", heatmaps=False)
    predict(run, place / "features", out, options=options, cohort_csv=cohort)
    trained, rows = read_csv(run / "predictions.csv"), read_csv(out / "predictions.csv")
    assert trained
    for patient, row in trained.items():
        assert row == rows[patient]
        assert len(row["slides"].split(";")) == slides_of(int(patient[1:]))


def ask(root: Path, out: Path, cohort: Path | None, **options: object) -> PredictSummary:
    chosen = PredictOptions(device="cpu", origin="level0", **options)  # type: ignore[arg-type]
    return predict(root / "run", root / "features", out, options=chosen, cohort_csv=cohort)


def read_csv(path: Path) -> dict[str, dict[str, str]]:
    rows = csv.DictReader(path.read_text(encoding="utf-8").splitlines())
    return {row["patient_id"]: row for row in rows}


@pytest.mark.parametrize("bag", ["patient", "slide"])
def test_what_is_counted_is_what_the_model_answers_for(
    place: Path, tmp_path: Path, bag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = (
        Answer(slide_id="one", values=np.array([0.4, 0.6])),
        Answer(slide_id="two", values=None, status="failed: broken"),
    )
    summary = PredictSummary(
        answers=answers, failures={"two": "broken"}, metrics={"all": {}, "test": {}}, seen=("one",), bag=bag,
        task=load_model(place / "run").task,
    )  # fmt: skip
    show_prediction(summary, tmp_path, as_json=False)
    shown = " ".join(capsys.readouterr().out.split())
    assert f"1 {bag}s answered, 0 without tissue, 1 failed" in shown
    assert f"1 {bag}s do not count below: the model learned from" in shown
    assert f"failed {bag}" in shown
    assert f"{bag}s that count value" in shown  # and not "all slides", of which some do not
    assert f"test {bag}s value" in shown


def test_slides_lie_below_each_other_in_their_own_order() -> None:
    first, second = np.array([[5, 7], [0, 9]]), np.array([[3, 100], [3, 40], [9, 40]])
    got = stacked([first, np.empty((0, 2), np.int64), second])
    assert got.tolist() == [[5, 7 - 7], [0, 2], [3, 63], [3, 3], [9, 3]]
    assert len({tuple(row) for row in got.tolist()}) == len(got)


def test_a_patient_is_answered_for_as_in_training(place: Path, tmp_path: Path) -> None:
    assert load_model(place / "run").bag == "patient"
    trained = read_csv(place / "run/predictions.csv")
    summary = ask(place, tmp_path, place / "cohort.csv", heatmaps=False)
    rows = read_csv(tmp_path / "predictions.csv")
    assert len(rows) == PATIENTS
    assert list(rows["p2"])[:3] == ["patient_id", "slides", "prob_a"]
    assert rows["p2"]["slides"] == "p2_0;p2_1;p2_2"
    assert {name: row["prob_b"] for name, row in trained.items()} == {name: rows[name]["prob_b"] for name in trained}
    assert {row["split"] for row in rows.values()} == {"train", "val", "test"}
    assert summary.metrics["all"]["auroc"].value > 0.9  # type: ignore[operator]
    assert set(summary.seen) == {name for name, row in rows.items() if row["split"] != "test"}
    assert any("1 slides are left out" in note and "stray" in note for note in summary.notes)


def test_a_patient_that_fails_at_a_later_slide_leaves_nothing_of_the_earlier_ones(place: Path, tmp_path: Path) -> None:
    features = tmp_path / "features"
    shutil.copytree(place / "features", features)
    (features / "tissue").mkdir()
    (features / "tissue" / "p2_1.geojson").write_text("no outline", encoding="utf-8")
    options = PredictOptions(device="cpu", origin="level0")
    summary = predict(place / "run", features, tmp_path / "out", options=options, cohort_csv=place / "cohort.csv")
    assert set(summary.failures) == {"p2"}
    left = {path.name.split(".")[0] for path in (tmp_path / "out").rglob("p*_*.*")}
    assert not {name for name in left if name.startswith("p2_")}
    assert {"p3_0", "p1_0", "p1_1"} <= left
    drawn = list((tmp_path / "out/overlays").glob("*.png"))
    with Image.open(tmp_path / "out/overlays/p3_0.png") as picture:
        said = json.loads(picture.text["wsimil"])  # type: ignore[attr-defined]  # of PNG images
    assert said["normalization"] == f"fixed for the cohort, {len(drawn)} slides", "it counts in no range, either"


def test_heatmaps_are_of_slides_and_add_up_with_the_patients_other_slides(place: Path, tmp_path: Path) -> None:
    ask(place, tmp_path, place / "cohort.csv")
    rows = read_csv(tmp_path / "predictions.csv")
    tables = [read_scores(tmp_path / f"scores/p2_{number}.parquet") for number in range(3)]
    assert sum(float(table.score("attention").sum()) for table in tables) == pytest.approx(1, abs=1e-5)
    for table in tables:
        assert table.answer("prob_b") == pytest.approx(float(rows["p2"]["prob_b"]), rel=1e-8)
        assert table.model["patient"] == "p2"
        assert table.bag_tiles == sum(map(len, tables))
        total = table.score("contribution:b").astype(float).sum() + table.bias[1]
        assert total == pytest.approx(table.logits[1], abs=1e-4)
    store = open_store(place / "features", mode="r")
    own = store.read("p2_1")
    assert tables[1].xy0.tolist() == own.grid.xy0.tolist()
    # The same tiles by hand: one pack of all, in the order of slide ids.
    trained = load_model(place / "run")
    bags = [store.read(f"p2_{number}") for number in range(3)]
    joined = np.concatenate([bag.features for bag in bags])
    xy0 = np.stack([np.arange(len(joined)), np.zeros(len(joined), np.int64)], axis=1)
    split = trained.model.contributions(pack([joined], xy0=[xy0], slide_ids=["p2"]))
    np.testing.assert_allclose(
        np.concatenate([t.score("contribution:b") for t in tables]), split.values[:, 1].detach().numpy(), atol=1e-6
    )
    assert not list((tmp_path / "overlays").glob("p7_empty*"))
    assert len(list((tmp_path / "overlays").glob("p7_*.png"))) == slides_of(7)


def test_an_empty_slide_adds_nothing_and_a_patient_of_empty_slides_has_no_answer(place: Path) -> None:
    trained, store = load_model(place / "run"), open_store(place / "features", mode="r")
    bags = [store.read("p7_0"), store.read("p7_1")]
    with_empty = predict_patient(trained, "p7", [*bags, store.read("p7_empty")])
    without = predict_patient(trained, "p7", bags)
    assert [p.slide_id for p in with_empty] == ["p7_0", "p7_1"]
    assert all(np.array_equal(a.logits, b.logits) for a, b in zip(with_empty, without, strict=True))
    assert predict_patient(trained, "x", [store.read("p7_empty")]) == []


def test_a_broken_slide_fails_its_patient_alone(place: Path, tmp_path: Path) -> None:
    features = tmp_path / "features"
    features.mkdir()
    for name in ("p2_0", "p2_1", "p2_2", "p3_0"):
        data = (place / f"features/{name}.h5").read_bytes()
        (features / f"{name}.h5").write_bytes(data[:2000] if name == "p2_1" else data)
    options = PredictOptions(device="cpu", heatmaps=False)
    summary = predict(place / "run", features, tmp_path / "out", options=options, cohort_csv=place / "cohort.csv")
    assert list(summary.failures) == ["p2"]
    assert "p2_1.h5" in summary.failures["p2"]
    rows = read_csv(tmp_path / "out/predictions.csv")
    assert rows["p2"]["status"].startswith("failed")
    assert rows["p3"]["prob_a"]
    assert (tmp_path / "out/failures.csv").read_text(encoding="utf-8").startswith("patient_id,reason")


def test_a_patient_who_lacks_a_slide_is_not_answered_for_from_the_rest(place: Path, tmp_path: Path) -> None:
    features = shutil.copytree(place / "features", tmp_path / "features")
    for name in ("p2_1", "p5_0", "p3_0"):  # of three slides, of three, and the only one
        (features / f"{name}.h5").unlink()
    (features / "failures.csv").write_text("slide_id,step,reason\np5_0,read,damaged tile\n", encoding="utf-8")
    options = PredictOptions(device="cpu", heatmaps=False)
    summary = predict(place / "run", features, tmp_path / "out", options=options, cohort_csv=place / "cohort.csv")
    assert summary.failures["p2"].startswith("slide 'p2_1': no features")
    assert summary.failures["p5"] == "slide 'p5_0': damaged tile"
    rows = read_csv(tmp_path / "out/predictions.csv")
    assert {name for name, row in rows.items() if row["status"] != "ok"} == {"p2", "p5"} == set(summary.failures)
    assert "p3" not in rows
    (told,) = [note for note in summary.notes if "no features" in note]
    assert told.startswith(f"1 of {PATIENTS} patients in the cohort file have no features here, and no answer")
    assert told.endswith("'p3'")


def test_a_patient_who_lacks_a_slide_is_not_learned_from_by_the_rest(place: Path, tmp_path: Path) -> None:
    features = shutil.copytree(place / "features", tmp_path / "features")
    (features / "p2_1.h5").unlink()
    configs = {bag: load_config(TrainConfig, given={"device": "cpu", "bag": bag}) for bag in ("patient", "slide")}
    found = {bag: plan(config, features, place / "cohort.csv").cohort for bag, config in configs.items()}
    assert "p2" not in found["patient"].patients
    lines = [str(finding) for finding in found["patient"].findings]
    assert "1 patients lack the features of one of their slides and are left out: 'p2'" in lines
    assert {"p2_0", "p2_2"} <= set(found["slide"].slide_ids)
    for path in features.glob("p*_0.h5"):
        path.unlink()
    with pytest.raises(CohortError, match=r"no patient of class .* has features of all his slides"):
        plan(configs["patient"], features, place / "cohort.csv")


def test_slides_without_a_label_are_in_the_bags_of_their_patients(place: Path, tmp_path: Path) -> None:
    cohort = one_label_each(place, tmp_path)
    summary = learn(place, tmp_path / "run", cohort=cohort)
    unlabelled = sum(slides_of(patient) - 1 for patient in range(PATIENTS))
    (told,) = [str(one) for one in summary.cohort.findings if "no label" in one.what and "slides have" in one.what]
    assert told.startswith(f"{unlabelled} slides have no label and are in the bags of their patients: 'p1_1', ")
    refuse_other_answers(tmp_path / "run", place, cohort, tmp_path / "out")
    labelled = read_csv(place / "run/predictions.csv")
    got = read_csv(tmp_path / "run/predictions.csv")
    assert {name: row["prob_b"] for name, row in got.items()} == {n: row["prob_b"] for n, row in labelled.items()}
    known = read_known(cohort, load_model(tmp_path / "run").task, "patient", groups=None)
    assert {row.slide_id: row.members for row in known.cohort.slides}["p2"] == ("p2_0", "p2_1", "p2_2")
    options = PredictOptions(device="cpu", heatmaps=False, pseudonyms=tmp_path / "names.json")
    predict(tmp_path / "run", place / "features", tmp_path / "named", options=options, cohort_csv=cohort)
    assert len(read_cohort(tmp_path / "named/cohort.csv").slides) == sum(map(slides_of, range(PATIENTS)))


def test_a_patient_who_lacks_a_slide_without_a_label_is_not_learned_from(place: Path, tmp_path: Path) -> None:
    features = shutil.copytree(place / "features", tmp_path / "features")
    (features / "p2_1.h5").unlink()
    config = load_config(TrainConfig, given={"device": "cpu", "bag": "patient"})
    found = plan(config, features, one_label_each(place, tmp_path)).cohort
    assert "p2" not in found.patients
    assert "1 patients lack the features of one of their slides and are left out: 'p2'" in map(str, found.findings)


@pytest.mark.parametrize("labelled", ["0", "012"])
def test_all_slides_of_a_patient_are_where_a_round_lists_one(labelled: str, place: Path, tmp_path: Path) -> None:
    sides = [[f"p{p}_0" for p in range(PATIENTS) if p // 2 % 4 in part] for part in ((0, 2), (1,), (3,))]
    rows = [",".join(("", *names)) for names in zip_longest(*sides, fillvalue="")]
    (tmp_path / "clam.csv").write_text("\n".join([",train,val,test", *rows, ""]), encoding="utf-8")
    cohort, splits = one_label_each(place, tmp_path, columns=3, labelled=labelled), tmp_path / "splits.json"
    make_splits(SplitsConfig(), cohort, splits, published=[tmp_path / "clam.csv"])
    summary = learn(place, tmp_path / "run", cohort=cohort, **{"split.file": str(splits), "fit.epochs": 2})
    told = [finding.what for finding in summary.cohort.findings if "round" in finding.what]
    assert told == ["slides are not in round 0 and follow their patients"]
    refuse_other_answers(tmp_path / "run", place, cohort, tmp_path / "out")


def test_splits_of_labelled_slides_are_those_of_their_patients(place: Path, tmp_path: Path) -> None:
    cohort = one_label_each(place, tmp_path, columns=3)
    make_splits(SplitsConfig(folds=3), cohort, tmp_path / "splits.json", features=place / "features")
    given = {"device": "cpu", "split.file": str(tmp_path / "splits.json"), "split.round": "1"}
    configs = {bag: load_config(TrainConfig, given={**given, "bag": bag}) for bag in ("patient", "slide")}
    of = {bag: plan(config, place / "features", cohort).cohort for bag, config in configs.items()}
    split_of = {slide.patient_id: slide.split for slide in of["slide"].slides}
    assert len(of["slide"].slides) == PATIENTS
    assert {slide.slide_id: slide.split for slide in of["patient"].slides} == {
        f"p{p}_{number}": split_of[f"p{p}"] for p in range(PATIENTS) for number in range(slides_of(p))
    }
    item = WorkItem(name="a/1", config=configs["patient"], features=tmp_path, cohort=cohort, out=tmp_path / "out")
    refuse_impossible(item, frozenset(of["patient"].slide_ids), there=False, asked=None)


def test_whose_slides_are_must_be_told_and_labels_need_not(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="this model answers for patients"):
        ask(place, tmp_path / "a", None)
    (tmp_path / "owners.csv").write_text("slide_id,patient_id\np2_0,new\np3_0,new\n", encoding="utf-8")
    summary = ask(place, tmp_path / "b", tmp_path / "owners.csv", heatmaps=False)
    assert [answer.slide_id for answer in summary.answers] == ["new"]
    assert summary.metrics == {}


def test_labels_of_a_patient_that_differ_are_refused(place: Path, tmp_path: Path) -> None:
    text = (place / "cohort.csv").read_text(encoding="utf-8").replace("p2_1,p2,a", "p2_1,p2,b")
    (tmp_path / "cohort.csv").write_text(text, encoding="utf-8")
    assert read_cohort(tmp_path / "cohort.csv")
    with pytest.raises(CohortError, match="patient 'p2' has slides of different labels, 'a', 'b'"):
        read_cohort(tmp_path / "cohort.csv").by_patient()
    with pytest.raises(CohortError, match=r"cohort.csv: patient 'p2' has slides of different labels, 'a', 'b'"):
        read_cohort(tmp_path / "cohort.csv", bag="patient")


def test_a_warm_start_from_slides_is_refused(place: Path, tmp_path: Path) -> None:
    learn(place, tmp_path / "slides", **{"bag": "slide", "fit.epochs": 1})
    with pytest.raises(ModelError, match="its bags are of a slide, those of this run of a patient"):
        learn(place, tmp_path / "run", **{"fit.warm_start": str(tmp_path / "slides"), "fit.epochs": 1})


@pytest.mark.parametrize("method", ["transmil", "rrt"])
def test_methods_that_ask_for_places_take_patients(method: str, place: Path, tmp_path: Path) -> None:
    narrow = {"hidden_dim": 16, "heads": 2, "kernel": 3} if method == "transmil" else {
        "hidden_dim": 16, "heads": 2, "cross_heads": 2, "region_side": 2, "cross_region_side": 2
    }  # fmt: skip
    summary = learn(place, tmp_path, **{"method": {"name": method, **narrow}, "fit.epochs": 2, "fit.entropy.weight": 0})
    assert len(read_csv(tmp_path / "predictions.csv")) == sum(
        split in ("val", "test") for split in [("train", "val", "train", "test")[p // 2 % 4] for p in range(PATIENTS)]
    )
    assert np.isfinite(summary.fit.history[-1].train_loss)
