"""Predictions under pseudonyms say the same as under ids, and no id is left beside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from wsimil.cohort import BagUnit
from wsimil.errors import OutputError
from wsimil.export.scores import read_scores
from wsimil.mil import registry
from wsimil.mil.saved import save_model
from wsimil.pseudonyms import Pseudonyms, open_pseudonyms
from wsimil.stages.predict import predict
from wsimil.stages.predict_options import PredictOptions
from wsimil.store import open_store
from wsimil.targets import Classification

Study = Callable[..., tuple[Path, Path]]
KEY = bytes(range(32))


def make_run(run: Path, features: Path, *, bag: BagUnit = "patient") -> Path:
    """A model, of patients, to which the order of tiles is not all the same."""
    store = open_store(features, mode="r")
    model = registry.build("transmil", {}, in_dim=store.header("s0").dim, num_classes=2, seed=3)
    model.standardize.fit([np.asarray(store.read_features(slide_id)) for slide_id in store.ids()])
    save_model(
        run, model, method="transmil", task=Classification(classes=("n", "t")), features=store.header("s0").provenance,
        training={}, bag=bag,
    )  # fmt: skip
    return run


@pytest.fixture
def keyed(tmp_path: Path) -> Path:
    """A file of names under which slides of one patient change places."""
    path = tmp_path / "names.json"
    path.write_text(json.dumps({"schema": "wsimil/pseudonyms/1", "key": KEY.hex(), "ids": {}}), encoding="utf-8")
    return path


def test_a_patient_gets_the_same_answer_under_a_name(feature_study: Study, keyed: Path, tmp_path: Path) -> None:
    features, cohort = feature_study(slides=9)
    first, second = (Pseudonyms(KEY).name(slide_id) for slide_id in ("s3", "s4"))
    assert second < first  # else nothing would be shown
    run = make_run(tmp_path / "run", features)
    for out, pseudonyms in (("plain", None), ("named", keyed)):
        options = PredictOptions(device="cpu", heatmaps=False, pseudonyms=pseudonyms)
        assert not predict(run, features, tmp_path / out, options=options, cohort_csv=cohort).failures
    plain, named = (pd.read_parquet(tmp_path / out / "predictions.parquet") for out in ("plain", "named"))
    names = open_pseudonyms(keyed)
    named = named.assign(patient_id=[names.identity(name) for name in named["patient_id"]])
    pairs = [table.set_index("patient_id").sort_index()["prob_t"] for table in (plain, named)]
    pd.testing.assert_series_equal(*pairs, check_exact=True)
    told = [
        {read_scores(path).slide_content for path in (tmp_path / out / "scores").iterdir()}
        for out in ("plain", "named")
    ]
    assert "" not in told[0]
    assert told[1] == {""}, "whoever has a slide's file could tell whose name this is"


@pytest.mark.parametrize(("heatmaps", "bag"), [(False, "patient"), (True, "patient"), (False, "slide")])
def test_names_stand_in_an_order_of_their_own(
    heatmaps: bool, bag: BagUnit, feature_study: Study, keyed: Path, tmp_path: Path
) -> None:
    features, cohort = feature_study(slides=9)
    run = make_run(tmp_path / "run", features, bag=bag)
    rows = cohort.read_text().splitlines()
    (run / "cohort.csv").write_text("\n".join([f"{rows[0]},split", *(f"{row},train" for row in rows[1:])]) + "\n")
    out = tmp_path / "out"
    options = PredictOptions(device="cpu", heatmaps=heatmaps, origin="level0", pseudonyms=keyed)
    assert not predict(run, features, out, options=options, cohort_csv=cohort).failures
    learned = json.loads((out / "predictions.json").read_text())["learned_from"]
    answered, known = pd.read_csv(out / "predictions.csv"), pd.read_csv(out / "cohort.csv")
    orders = {
        **{what: list(learned[what] or ()) for what in ("splits", "patients", "slides")}, "cohort": list(known["slide_id"]),
    }  # fmt: skip
    if bag == "patient":
        each = zip(answered["patient_id"], answered["slides"], strict=True)
        orders |= {name: slides.split(";") for name, slides in each}
    assert max(map(len, orders.values())) == 9
    assert orders == {what: sorted(names) for what, names in orders.items()}


def test_no_slide_that_a_model_learned_from_is_told_by_its_facts(
    feature_study: Study, keyed: Path, tmp_path: Path
) -> None:
    features, cohort = feature_study(slides=9)
    run = make_run(tmp_path / "run", features)
    assert open_store(features, mode="r").header("s0").provenance.slide_digest
    facts = json.loads((run / "model.json").read_text())
    assert (facts["features"]["slide"], facts["features"]["slide_digest"]) == ({}, "")
    # As earlier versions wrote it, of features that were converted.
    facts["features"]["pixels"] |= {"source_file": "s0.h5", "source_sha256": "a" * 64}
    facts["features"] |= {"slide": {"mpp": 0.5}, "slide_digest": "d" * 64}
    (run / "model.json").write_text(json.dumps(facts))
    options = PredictOptions(device="cpu", heatmaps=False, pseudonyms=keyed)
    predict(run, features, tmp_path / "out", options=options, cohort_csv=cohort)
    told = (tmp_path / "out/predictions.json").read_text()
    assert not [word for word in ("s0.h5", "a" * 64, "d" * 64) if word in told]


@pytest.mark.parametrize("left", ["notes/s0.geojson", "features/s0.h5"])
def test_ids_that_an_earlier_prediction_left_are_refused_beside_names(
    left: str, feature_study: Study, keyed: Path, tmp_path: Path
) -> None:
    features, cohort = feature_study(slides=3)
    run, out = make_run(tmp_path / "run", features), tmp_path / "out"
    (out / left).parent.mkdir(parents=True)
    (out / left).write_text("{}")
    options = PredictOptions(device="cpu", heatmaps=False, pseudonyms=keyed)
    with pytest.raises(OutputError, match="is left from an earlier prediction, and its files are named by slide ids"):
        predict(run, features, out, options=options, cohort_csv=cohort)
    assert [path.name for path in out.iterdir()] == [left.partition("/")[0]]
    name = Pseudonyms(KEY).name("s0")
    (out / left).rename(tmp_path / "away")
    (out / left).parent.rmdir()
    predict(run, features, out, options=options, cohort_csv=cohort)
    (out / "notes").mkdir()
    (out / "notes" / f"{name}.geojson").write_text("{}")  # named by a name: no id is told
    predict(run, features, out, options=options, cohort_csv=cohort)
