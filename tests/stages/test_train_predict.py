"""From features to answers: the run folder, the refusals, the tables and the maps."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsimil.bags import FeatureBag
from wsimil.config import load_config
from wsimil.errors import CohortError, ConfigError, ModelError, StoreError, TrainingError
from wsimil.export.scores import read_scores
from wsimil.extraction.config import ExtractConfig
from wsimil.extraction.sources import list_sources
from wsimil.mil.saved import load_model
from wsimil.stages.export import ExportOptions, export
from wsimil.stages.extract import extract
from wsimil.stages.predict import PredictSummary, predict
from wsimil.stages.predict_options import PredictOptions
from wsimil.stages.train import TrainSummary, plan, train
from wsimil.stages.train_config import TrainConfig
from wsimil.store import open_store

Make = Callable[..., Path]


def read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def write_cohort(path: Path, lines: list[str], header: str = "slide_id,patient_id,label,split") -> Path:
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, make_slide: Make) -> Path:
    """Slides, features, a cohort and a run; the slides of class "big" have coarser texture."""
    root = tmp_path_factory.mktemp("place")
    lines = []
    for index in range(12):
        make_slide(root / f"slides/s{index}.tiff", seed=index, size_px=(768, 768 + 256 * (index % 2)))
        lines.append(
            f"s{index},p{index},{('small', 'big')[index % 2]},{('train', 'train', 'val', 'test')[index // 2 % 4]}"
        )
    make_slide(root / "slides/glass.tiff", tissue=False)
    write_cohort(root / "cohort.csv", [*lines, "glass,p99,small,test", "absent,p98,big,test"])
    extract(load_config(ExtractConfig, given={"device": "cpu"}), list_sources(root / "slides"), root / "features")
    run_train(root)
    return root


def run_train(
    root: Path, out: str = "run", *, overwrite: bool = False, cohort: str = "cohort.csv", **given: object
) -> TrainSummary:
    config = load_config(TrainConfig, given={"device": "cpu", "fit.epochs": 4, **given})  # type: ignore[dict-item]
    return train(config, root / "features", root / cohort, root / out, overwrite=overwrite)


def run_predict(
    root: Path, out: Path, source: str = "features", *, cohort: bool = False, run: str = "run", **options: object
) -> PredictSummary:
    chosen = PredictOptions(device="cpu", **options)  # type: ignore[arg-type]
    return predict(root / run, root / source, out, options=chosen, cohort_csv=root / "cohort.csv" if cohort else None)


def test_a_run_leaves_everything_that_the_readme_names(place: Path) -> None:
    names = {entry.name for entry in (place / "run").iterdir()}
    assert names == {
        "config.yaml", "cohort.csv", "cohort.txt", "model.safetensors", "model.json", "metrics.jsonl", "metrics.json",
        "tensorboard", "checkpoint", "predictions.csv", "predictions.parquet", "decision.json",
    }  # fmt: skip
    note = (place / "run/cohort.txt").read_text(encoding="utf-8")
    assert "1 labelled slides have no features and are left out: 'absent'" in note
    assert "1 slides have no tissue tile and are left out: 'glass'" in note
    assert "1 patients" in note or "patients" in note
    assert {row["split"] for row in read_csv(place / "run/predictions.csv")} == {"val", "test"}
    assert json.loads((place / "run/metrics.json").read_text(encoding="utf-8"))["test"]["auroc"]["value"] is not None


def test_a_resolved_config_repeats_the_run(place: Path, tmp_path: Path) -> None:
    config = load_config(TrainConfig, place / "run/config.yaml")
    train(config, place / "features", place / "cohort.csv", tmp_path)
    ours, theirs = load_model(tmp_path).model.state_dict(), load_model(place / "run").model.state_dict()
    assert all(np.array_equal(ours[name].numpy(), theirs[name].numpy()) for name in theirs)


def test_a_changed_config_needs_overwrite_and_gets_it(place: Path) -> None:
    run_train(place, "again")
    with pytest.raises(TrainingError, match=r"fit\.seed: 0 -> 5"):
        run_train(place, "again", **{"fit.seed": 5})
    assert run_train(place, "again", overwrite=True, **{"fit.seed": 5}).fit.kept_epoch > 0
    with pytest.raises(ConfigError, match=r"model\.safetensors is of the run in .* and would go"):
        run_train(place, "again", overwrite=True, **{"fit.warm_start": str(place / "again")})
    assert (place / "again/model.safetensors").is_file()


def test_overwrite_spares_a_folder_that_is_no_run(place: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    config = load_config(TrainConfig, given={"device": "cpu"})
    with pytest.raises(ConfigError, match="holds files but no run"):
        train(config, place / "features", place / "cohort.csv", tmp_path, overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_dry_run_of_training_writes_nothing(place: Path) -> None:
    planned = plan(load_config(TrainConfig), place / "features", place / "cohort.csv")
    assert planned.in_dim == 320
    assert len(planned.cohort.slides) == 12


def test_features_of_two_kinds_are_refused_with_both_names(place: Path, tmp_path: Path) -> None:
    for path in (place / "features").glob("*.h5"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    other = load_config(ExtractConfig, given={"device": "cpu", "tile.tile_um": 150.0})
    extract(other, list_sources(place / "slides/s3.tiff"), tmp_path / "other")
    (tmp_path / "other/s3.h5").replace(tmp_path / "s3.h5")
    with pytest.raises(StoreError, match=r"'glass' and 's3' differ in tiling.mpp"):
        train(load_config(TrainConfig), tmp_path, place / "cohort.csv", tmp_path / "run")


def test_a_corrupt_feature_file_is_named(place: Path, tmp_path: Path) -> None:
    for path in (place / "features").glob("*.h5"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "s2.h5").write_bytes((tmp_path / "s2.h5").read_bytes()[:2000])
    with pytest.raises(StoreError, match=r"s2\.h5"):
        train(load_config(TrainConfig), tmp_path, place / "cohort.csv", tmp_path / "run")
    summary = predict(place / "run", tmp_path, tmp_path / "out", options=PredictOptions(device="cpu", heatmaps=False))
    assert set(summary.failures) == {"s2"}
    assert len(summary.answers) == 13


def test_unknown_slides_alone_are_an_error(place: Path, tmp_path: Path) -> None:
    cohort = write_cohort(
        tmp_path / "c.csv", [f"{place / 'slides'}/s{i}.tiff,p{i},{'ab'[i % 2]},train" for i in range(4)]
    )
    with pytest.raises(CohortError, match="none of the 4 slides of the cohort has features"):
        train(load_config(TrainConfig), place / "features", cohort, tmp_path / "run")


def test_predictions_are_complete_and_their_files_are_there(place: Path, tmp_path: Path) -> None:
    summary = run_predict(place, tmp_path)
    rows = {row["slide_id"]: row for row in read_csv(tmp_path / "predictions.csv")}
    assert len(rows) == 13
    assert list(rows["s0"]) == [
        "slide_id",
        "patient_id",
        "prob_big",
        "prob_small",
        "predicted",
        "label",
        "split",
        "status",
    ]
    assert rows["glass"]["status"] == "no tissue tile"
    assert rows["glass"]["prob_big"] == ""
    assert rows["s0"]["split"] == "train"
    assert summary.failures == {}
    assert not (tmp_path / "failures.csv").exists()
    assert (tmp_path / "qupath/import_wsimil.groovy").is_file()
    for slide_id in sorted(set(rows) - {"glass"}):
        table = read_scores(tmp_path / "scores" / f"{slide_id}.parquet")
        assert float(rows[slide_id]["prob_big"]) == pytest.approx(table.answer("prob_big"), abs=1e-8)
        for name, logit, bias in zip(table.task.outputs, table.logits, table.bias, strict=True):
            assert table.score(f"contribution:{name}").astype(float).sum() + bias == pytest.approx(logit, abs=1e-4)
        assert table.score("attention").sum() == pytest.approx(1, abs=1e-5)
        shown = json.loads((tmp_path / "qupath" / f"{slide_id}.geojson").read_text(encoding="utf-8"))
        assert shown["type"] == "FeatureCollection"
        found = json.loads((place / "features/tissue" / f"{slide_id}.geojson").read_text(encoding="utf-8"))
        names = [feature["properties"].get("name") for feature in found["features"]]
        assert "Tissue 1" in names
        assert [n for f in shown["features"] if "Tissue" in (n := f["properties"].get("name", ""))] == names
        assert [[ring.tolist() for ring in polygon] for polygon in table.tissue] == [
            feature["geometry"]["coordinates"] for feature in found["features"]
        ]
        with Image.open(tmp_path / "overlays" / f"{slide_id}.png") as picture:
            assert min(picture.size) > 100


def test_slides_that_were_learned_from_do_not_count(place: Path, tmp_path: Path) -> None:
    summary = run_predict(place, tmp_path, cohort=True, heatmaps=False)
    learned = {row["slide_id"] for row in read_csv(place / "run/cohort.csv") if row["split"] in ("train", "val")}
    assert set(summary.seen) == learned
    assert list(summary.metrics) == ["all"]
    alone = json.loads((place / "run/metrics.json").read_text(encoding="utf-8"))["test"]
    assert summary.metrics["all"]["auroc"].value == alone["auroc"]["value"]


def test_new_slides_of_patients_that_were_learned_from_do_not_count(place: Path, tmp_path: Path) -> None:
    learned = {row["slide_id"] for row in read_csv(place / "run/cohort.csv") if row["split"] in ("train", "val")}
    tested = [row["slide_id"] for row in read_csv(place / "run/cohort.csv") if row["split"] == "test"]
    rows = [f"{slide_id},{'p0' if slide_id == tested[0] else slide_id},small" for slide_id in [*tested, "s0"]]
    table = write_cohort(tmp_path / "c.csv", [*rows, "absent,p98,big"], header="slide_id,patient_id,label")
    summary = predict(
        place / "run",
        place / "features",
        tmp_path / "out",
        options=PredictOptions(device="cpu", heatmaps=False),
        cohort_csv=table,
    )
    assert set(summary.seen) == {*learned, tested[0]}


def test_slides_give_the_same_answers_as_their_features(place: Path, tmp_path: Path) -> None:
    run_predict(place, tmp_path / "a", heatmaps=False)
    summary = run_predict(place, tmp_path / "b", "slides", heatmaps=False)
    assert summary.failures == {}
    first, second = (read_csv(tmp_path / side / "predictions.csv") for side in "ab")
    assert first == second
    ours = open_store(tmp_path / "b/features", mode="r").header("s1").provenance
    assert ours.digest == open_store(place / "features", mode="r").header("s1").provenance.digest


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"encoder": "efficientnet_lite0"}, r"encoder.name: 'efficientnet_lite0_trunc' != 'efficientnet_lite0'"),
        ({"tile.tile_um": 150.0}, r"tiling.mpp: 0.57142\d* != 0.66964\d*"),
        ({"tile.overlap": 0.5}, "tiling.stride_px: 224 != 112"),
    ],
)
def test_features_of_another_kind_are_refused_with_both_values(
    place: Path, tmp_path: Path, change: dict[str, object], expected: str
) -> None:
    config = load_config(ExtractConfig, given={"device": "cpu", **change})  # type: ignore[dict-item]
    extract(config, list_sources(place / "slides/s0.tiff"), tmp_path / "features")
    with pytest.raises(ModelError, match=expected):
        predict(place / "run", tmp_path / "features", tmp_path / "out", options=PredictOptions(device="cpu"))
    assert not (tmp_path / "out").exists()


def test_one_slide_of_another_kind_fails_alone(place: Path, tmp_path: Path) -> None:
    for name in ("s0", "s1"):
        (tmp_path / f"{name}.h5").write_bytes((place / "features" / f"{name}.h5").read_bytes())
    other = load_config(ExtractConfig, given={"device": "cpu", "tile.tile_um": 150.0})
    extract(other, list_sources(place / "slides/s1.tiff"), tmp_path / "other")
    (tmp_path / "other/s1.h5").replace(tmp_path / "s1.h5")
    summary = predict(place / "run", tmp_path, tmp_path / "out", options=PredictOptions(device="cpu", heatmaps=False))
    assert set(summary.failures) == {"s1"}
    assert read_csv(tmp_path / "out/failures.csv")[0]["slide_id"] == "s1"


def test_a_slide_of_which_no_finite_answer_comes_fails_alone(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "features", tmp_path / "features")
    store = open_store(tmp_path / "features", mode="w")
    bag = store.read("s1")
    signs = np.where(np.random.default_rng(0).random(bag.features.shape) < 0.5, -1, 1)
    store.write(replace(bag, features=(3e38 * signs).astype(np.float32)))
    options = PredictOptions(device="cpu", heatmaps=False)
    summary = predict(place / "run", tmp_path / "features", tmp_path / "out", options=options)
    assert set(summary.failures) == {"s1"}
    assert "which are no answer; its features reach from -3e+38 to 3e+38" in summary.failures["s1"]


def test_a_slide_that_cannot_be_read_is_a_failure_beside_the_answers(
    place: Path, make_slide: Make, tmp_path: Path
) -> None:
    make_slide(tmp_path / "in/good.tiff", seed=3)
    make_slide(tmp_path / "in/no_mpp.tiff", mpp=None)
    summary = predict(
        place / "run", tmp_path / "in", tmp_path / "out", options=PredictOptions(device="cpu", heatmaps=False)
    )
    assert "no mpp" in summary.failures["no_mpp"]
    statuses = {row["slide_id"]: row["status"] for row in read_csv(tmp_path / "out/predictions.csv")}
    assert statuses["good"] == "ok"
    assert statuses["no_mpp"].startswith("failed: ")
    nothing = predict(place / "run", tmp_path / "in/no_mpp.tiff", tmp_path / "o", options=PredictOptions(device="cpu"))
    assert set(nothing.failures) == {"no_mpp"}
    assert [row["slide_id"] for row in read_csv(tmp_path / "o/predictions.csv")] == ["no_mpp"]


def test_a_second_prediction_into_one_folder_leaves_nothing_of_the_first(
    place: Path, tmp_path: Path, make_slide: Make
) -> None:
    options = PredictOptions(device="cpu")
    for name in ("a", "b"):
        make_slide(tmp_path / f"in/{name}.tiff")
    table = write_cohort(tmp_path / "c.csv", ["a,x,big", "b,y,small"], header="slide_id,patient_id,label")
    first = predict(place / "run", tmp_path / "in", tmp_path / "out", options=options, cohort_csv=table)
    assert {answer.slide_id for answer in first.answers} == {"a", "b"}
    assert (tmp_path / "out/metrics.json").exists()
    exported = export(tmp_path / "out", options=ExportOptions(formats=("csv",)), now=datetime(2026, 1, 1, tzinfo=UTC))
    assert exported.written == {"csv": 2}
    (tmp_path / "in/a.tiff").write_bytes(b"no slide any more")
    second = predict(place / "run", tmp_path / "in", tmp_path / "out", options=options)
    assert set(second.failures) == {"a"}
    rows = {row["slide_id"]: row["status"] for row in read_csv(tmp_path / "out/predictions.csv")}
    assert rows["b"] == "ok"
    assert rows["a"].startswith("failed: ")
    for folder, suffix in (("scores", ".parquet"), ("qupath", ".geojson"), ("overlays", ".png")):
        assert [path.name for path in (tmp_path / "out" / folder).glob(f"*{suffix}")] == [f"b{suffix}"]
    assert not list((tmp_path / "out/export/csv").glob("*"))
    assert not (tmp_path / "out/metrics.json").exists()
    third = predict(place / "run", tmp_path / "in/b.tiff", tmp_path / "out", options=options)
    assert [answer.slide_id for answer in third.answers] == ["b"]


def test_predictions_are_not_laid_over_a_run_or_over_features(place: Path) -> None:
    options = PredictOptions(device="cpu", heatmaps=False)
    before = (place / "run/metrics.json").read_bytes()
    for name in ("run", "features", "slides"):
        with pytest.raises(ConfigError, match="a folder of their own"):
            predict(
                place / "run", place / ("slides" if name == "slides" else "features"), place / name, options=options
            )
    assert (place / "run/metrics.json").read_bytes() == before


def test_a_damaged_feature_file_is_one_failure_wherever_it_lies(place: Path, tmp_path: Path) -> None:
    for path in (place / "features").glob("*.h5"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    first = min(tmp_path.glob("*.h5"))
    first.write_bytes(b"nothing")
    summary = predict(place / "run", tmp_path, tmp_path / "out", options=PredictOptions(device="cpu", heatmaps=False))
    assert set(summary.failures) == {first.stem}


def test_a_thumbnail_that_is_cut_short_costs_the_picture_alone(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "features", tmp_path / "features")
    picture = tmp_path / "features/thumbnails/s0.jpg"
    picture.write_bytes(picture.read_bytes()[:2000])
    summary = predict(place / "run", tmp_path / "features", tmp_path / "out", options=PredictOptions(device="cpu"))
    assert summary.failures == {}
    assert (tmp_path / "out/overlays/s0.png").exists()


def test_weights_of_another_encoder_are_refused_before_any_slide(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "run", tmp_path / "run")
    facts = json.loads((tmp_path / "run/model.json").read_text(encoding="utf-8"))
    facts["features"]["encoder"]["weights_sha256"] = "0" * 64
    (tmp_path / "run/model.json").write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(ModelError, match="give the weights that the model's features were made with"):
        predict(tmp_path / "run", place / "slides", tmp_path / "out", options=PredictOptions(device="cpu"))
    assert not list((tmp_path / "out/features").glob("*.h5"))


def test_a_run_can_be_read_by_whom_the_folder_lets(place: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)
    for name in ("model.safetensors", "checkpoint/last.safetensors", "model.json"):
        assert (place / "run" / name).stat().st_mode & 0o777 == 0o666 & ~mask


def test_features_of_slides_that_failed_lately_are_a_counted_line(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "features", tmp_path / "features")
    (tmp_path / "features/failures.csv").write_text("slide_id,path,step,reason\ns1,s1.tiff,open,x\n", encoding="utf-8")
    config = load_config(TrainConfig, given={"device": "cpu", "fit.epochs": 1})
    summary = train(config, tmp_path / "features", place / "cohort.csv", tmp_path / "run")
    lines = [str(finding) for finding in summary.cohort.findings]
    assert "1 slides failed in the last extraction, and are used with the features of an earlier one: 's1'" in lines


@pytest.mark.parametrize(
    ("line", "refusal"),
    [
        ("s0-copy,p0,small,train", None),
        (
            "s0-copy,p50,small,test",
            r"slides 's0' \(patient 'p0', 'small'\) and 's0-copy' \(patient 'p50', 'small'\) are one",
        ),
        ("s0-copy,p0,big,train", "or bear two labels"),
    ],
)
def test_one_image_under_two_names_is_a_counted_line_or_a_refusal(
    place: Path, tmp_path: Path, make_slide: Make, line: str, refusal: str | None
) -> None:
    shutil.copytree(place / "features", tmp_path / "features")
    make_slide(tmp_path / "slides/s0-copy.tiff", seed=0, size_px=(768, 768))
    assert (tmp_path / "slides/s0-copy.tiff").read_bytes() == (place / "slides/s0.tiff").read_bytes()
    extract(
        load_config(ExtractConfig, given={"device": "cpu"}), list_sources(tmp_path / "slides"), tmp_path / "features"
    )
    cohort = tmp_path / "cohort.csv"
    cohort.write_text((place / "cohort.csv").read_text() + line + "\n", encoding="utf-8")
    config = load_config(TrainConfig, given={"device": "cpu", "fit.epochs": 1})
    if refusal is None:
        found = plan(config, tmp_path / "features", cohort).cohort.findings
        assert "2 slides have one content: 's0', 's0-copy'" in [str(finding) for finding in found]
    else:
        with pytest.raises(CohortError, match=refusal):
            plan(config, tmp_path / "features", cohort)


def test_a_score_that_the_method_does_not_give_is_refused_at_once(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"score 'lrp' .* it gives attention, contribution:big, contribution:small"):
        run_predict(place, tmp_path, score="lrp")


@pytest.mark.parametrize("damage", ["weights", "facts", "missing", "swapped", "newer"])
def test_a_damaged_run_is_refused_by_name(place: Path, tmp_path: Path, damage: str) -> None:
    for name in ("model.safetensors", "model.json"):
        (tmp_path / name).write_bytes((place / "run" / name).read_bytes())
    if damage == "weights":
        (tmp_path / "model.safetensors").write_bytes(b"not tensors")
    elif damage == "facts":
        (tmp_path / "model.json").write_text("{", encoding="utf-8")
    elif damage == "missing":
        (tmp_path / "model.safetensors").unlink()
    elif damage == "swapped":
        raw = bytearray((tmp_path / "model.safetensors").read_bytes())
        raw[-1] ^= 1
        (tmp_path / "model.safetensors").write_bytes(raw)
    else:
        facts = json.loads((tmp_path / "model.json").read_text(encoding="utf-8")) | {"format_version": 99}
        (tmp_path / "model.json").write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(ModelError, match="model"):
        load_model(tmp_path)


def test_a_bag_means_the_same_in_the_store_and_in_the_prediction(place: Path, tmp_path: Path) -> None:
    run_predict(place, tmp_path, heatmaps=False)
    bag: FeatureBag = open_store(place / "features", mode="r").read("s5")
    table = read_scores(tmp_path / "scores/s5.parquet")
    assert np.array_equal(table.xy0, bag.grid.xy0)
    assert table.size0 == bag.grid.size0
