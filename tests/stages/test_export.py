"""`wsimil export`: every form of every slide, and what fails is named and stops nothing."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from wsimil.cli import app
from wsimil.errors import ConfigError, OutputError
from wsimil.evaluation.prediction import Prediction
from wsimil.evaluation.table import Row, write_table
from wsimil.export.formats import FORMATS
from wsimil.export.scores import read_scores, write_scores
from wsimil.geometry import SlideInfo, TileGrid, TileSpec
from wsimil.stages.export import ExportOptions, ExportSummary, export, remove_exports
from wsimil.stages.occupied import occupied
from wsimil.store import open_store
from wsimil.targets import Classification
from wsimil.testing.store_laws import make_bag

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WITHOUT_SLIDE = tuple(name for name in FORMATS if name != "dicom")
HOSTILE = ('"><img src=x onerror=alert(1)>', "=cmd|' C'!A0", "'; rm -rf ~ ;'", "a b", "日本語", "x" * 190)


def _prediction(slide_id: str) -> Prediction:
    info = SlideInfo(
        slide_id=slide_id, path=Path("s.svs"), size0_px=(2240, 1120), mpp=0.5, mpp_source="metadata", mpp_detail="test",
        level_downsamples=(1.0,), bounds0_px=(0, 0, 2240, 1120), vendor="test", digest="0" * 64,
    )  # fmt: skip
    xy0 = np.stack(np.meshgrid(np.arange(0, 2240, 224), np.arange(0, 1120, 224)), axis=-1).reshape(-1, 2)
    n = len(xy0)
    grid = TileGrid(
        slide=info, spec=TileSpec(size_px=224, mpp=0.5, stride_px=224, min_tissue=0.0), xy0=xy0,
        tissue=np.ones(n, np.float32), read_level=0, read_px=224,
    )  # fmt: skip
    parts = np.linspace(-1, 1, 2 * n, dtype=np.float32).reshape(n, 2)
    return Prediction(
        slide_id=slide_id, task=Classification(classes=("a", "b")), values=np.array([0.25, 0.75]),
        logits=parts.astype(np.float64).sum(axis=0), bias=np.zeros(2),
        score_names=("attention", "contribution:a", "contribution:b"),
        scores=np.concatenate([np.full((n, 1), 1 / n, np.float32), parts], axis=1), grid=grid, model={"method": "test"},
    )  # fmt: skip


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    for slide_id in ("one", "two"):
        write_scores(tmp_path / "predictions/scores" / f"{slide_id}.parquet", _prediction(slide_id))
    return tmp_path / "predictions"


def run(predictions: Path, out: Path | None = None, **options: object) -> ExportSummary:
    chosen = ExportOptions(**{"formats": WITHOUT_SLIDE, **options})  # type: ignore[arg-type]
    return export(predictions, out, options=chosen, now=NOW)


def failures(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "failures.csv").read_text(encoding="utf-8").splitlines()))


def test_every_form_of_every_slide_is_there(predictions: Path, tmp_path: Path) -> None:
    summary = run(predictions, tmp_path / "out")
    assert summary.failures == ()
    assert summary.written == dict.fromkeys(WITHOUT_SLIDE, 2)
    for name in WITHOUT_SLIDE:
        form = FORMATS[name]
        for slide_id in ("one", "two"):
            assert (tmp_path / "out" / form.folder / f"{slide_id}{form.suffix}").stat().st_size > 100
    assert (tmp_path / "out/qupath/import_wsimil.groovy").is_file()
    assert not (tmp_path / "out/failures.csv").exists()


def test_the_same_predictions_give_the_same_bytes(predictions: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(predictions, tmp_path / name)
    files = [path for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert len(files) == 2 * len(WITHOUT_SLIDE) + 1
    for path in files:
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def test_a_folder_into_which_another_process_exports_is_left_as_it_is(predictions: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "csv").mkdir(parents=True)
    (out / "csv/one.csv").write_text("of the other one")
    with occupied(out), pytest.raises(OutputError, match="in use by process"):
        run(predictions, out, formats=("csv",))
    assert (out / "csv/one.csv").read_text() == "of the other one"
    run(predictions, out, formats=("csv",))
    assert {entry.name for entry in out.iterdir()} == {"csv"}


def test_without_a_place_exports_lie_within_the_predictions_and_leave_their_files_alone(predictions: Path) -> None:
    (predictions / "failures.csv").write_text("of the prediction")
    run(predictions, formats=("csv",))
    assert (predictions / "export/csv/one.csv").is_file()
    assert (predictions / "failures.csv").read_text() == "of the prediction"


def test_a_broken_table_fails_alone_and_leaves_nothing_of_before(predictions: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(predictions, out)
    (predictions / "scores/one.parquet").write_bytes(b"nothing")
    summary = run(predictions, out)
    assert [(failure.slide_id, failure.form) for failure in summary.failures] == [("one", "")]
    assert set(summary.written.values()) == {1}
    assert [path.name for path in out.rglob("*one*")] == []
    (row,) = failures(out)
    assert "one.parquet cannot be read" in row["reason"]


def test_a_new_prediction_leaves_no_failures_of_exports_before(predictions: Path) -> None:
    run(predictions, formats=("dicom", "csv"))
    assert failures(predictions / "export")
    remove_exports(predictions)
    assert not [path for path in (predictions / "export").rglob("*") if path.is_file()]


def test_a_table_under_another_slides_name_is_refused(predictions: Path, tmp_path: Path) -> None:
    (predictions / "scores/two.parquet").rename(predictions / "scores/three.parquet")
    summary = run(predictions, tmp_path / "out", formats=("csv",))
    assert [(failure.slide_id, failure.form) for failure in summary.failures] == [("three", "")]
    assert "is of slide 'two'" in summary.failures[0].reason


def test_scores_of_another_model_than_those_before_are_refused(predictions: Path, tmp_path: Path) -> None:
    other = replace(_prediction("three"), model={"method": "test", "digest": "abc"})
    write_scores(predictions / "scores/three.parquet", other)
    summary = run(predictions, tmp_path / "out", formats=("png",))
    assert [(failure.slide_id, failure.form) for failure in summary.failures] == [("three", "")]
    assert "are of another model (abc) than those of slide 'one' ()" in summary.failures[0].reason
    with Image.open(tmp_path / "out/overlays/one.png") as picture:
        said = json.loads(picture.text["wsimil"])  # type: ignore[attr-defined]  # of PNG images
    assert said["normalization"] == "fixed for the cohort, 2 slides"


def test_scores_of_another_answer_than_the_listed_one_are_refused(predictions: Path, tmp_path: Path) -> None:
    task = _prediction("one").task
    facts = {
        "format_version": 2, "method": "test", "config": {}, "in_dim": 1, "task": task.to_json(), "features": None,
        "training": {}, "weights_digest": "",
    }  # fmt: skip
    learned = {"known": False, "splits": {}, "patients": {}, "counts": {}}
    tree = {"schema": "wsimil/predictions/1", "model": facts, "learned_from": learned}
    (predictions / "predictions.json").write_text(json.dumps(tree), encoding="utf-8")
    given = {"one": np.array([0.25, 0.75]), "two": np.array([0.5, 0.5])}
    write_table(predictions, [Row(slide_id=slide_id, values=values) for slide_id, values in given.items()], task=task)
    write_scores(predictions / "scores/three.parquet", _prediction("three"))
    summary = run(predictions, tmp_path / "out", formats=("csv",))
    assert [failure.slide_id for failure in summary.failures] == ["three", "two"]
    assert all("belong to another answer than the one in the list" in one.reason for one in summary.failures)
    assert all("or its file came from elsewhere; " in one.reason for one in summary.failures)


@pytest.mark.parametrize("slide_id", HOSTILE)
def test_a_hostile_id_that_can_be_a_file_name_stays_one(slide_id: str, tmp_path: Path) -> None:
    write_scores(tmp_path / "p/scores" / f"{slide_id}.parquet", _prediction(slide_id))
    assert run(tmp_path / "p", tmp_path / "out").failures == ()
    for name in WITHOUT_SLIDE:
        form = FORMATS[name]
        found = {path.name for path in (tmp_path / "out" / form.folder).iterdir()} - {"import_wsimil.groovy"}
        assert found == {f"{slide_id}{form.suffix}"}
    assert {path.name for path in tmp_path.iterdir()} == {"p", "out"}


@pytest.mark.parametrize(
    "slide_id", ["../x", "/etc/x", "<script>alert(1)</script>", "a\nb", "x" * 300, "..", "", "a\\b", "\u202eb"]
)
def test_a_hostile_id_that_can_be_no_file_name_is_refused_before_anything_is_written(
    slide_id: str, tmp_path: Path
) -> None:
    write_scores(tmp_path / "p/scores/x.parquet", _prediction(slide_id))
    summary = run(tmp_path / "p", tmp_path / "p/q/out")
    assert len(summary.failures) == 1
    assert "cannot be a file name" in summary.failures[0].reason
    written = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {"x.parquet", "failures.csv", "import_wsimil.groovy"}


def test_forms_that_nobody_knows_are_refused_with_the_nearest(predictions: Path) -> None:
    with pytest.raises(ConfigError, match=r"--to 'qpath': wanted some of .*did you mean 'qupath'"):
        run(predictions, formats=("qpath",))
    with pytest.raises(ConfigError, match="--to names no form"):
        run(predictions, formats=())


def test_a_folder_without_score_tables_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no score tables"):
        run(tmp_path)


def test_an_output_place_that_cannot_be_written_stops_at_once(predictions: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError):
        run(predictions, tmp_path / "out/x")


def test_a_score_that_a_table_lacks_is_a_failure_of_that_slide(predictions: Path, tmp_path: Path) -> None:
    summary = run(predictions, tmp_path / "out", score="contribution:c", formats=("csv", "ome-tiff"))
    assert len(summary.failures) == 4
    assert "has no score 'contribution:c', only attention" in summary.failures[0].reason
    assert run(predictions, tmp_path / "out", score="attention").failures == ()


def test_tissue_of_older_tables_is_taken_from_the_features(predictions: Path, tmp_path: Path) -> None:
    square = {"type": "Polygon", "coordinates": [[[0, 0], [500, 0], [500, 500], [0, 500], [0, 0]]]}
    (tmp_path / "features/tissue").mkdir(parents=True)
    (tmp_path / "features/tissue/one.geojson").write_text(json.dumps(square))
    (tmp_path / "features/tissue/two.geojson").write_text("{")
    summary = run(predictions, tmp_path / "out", formats=("qupath",), features=tmp_path / "features")
    tree = json.loads((tmp_path / "out/qupath/one.geojson").read_text(encoding="utf-8"))
    assert "Tissue 1" in [feature["properties"].get("name") for feature in tree["features"]]
    assert [failure.slide_id for failure in summary.failures] == ["two"]


def test_dicom_without_a_dicom_slide_fails_slide_by_slide_and_says_what_to_do(
    predictions: Path, tmp_path: Path, make_slide
) -> None:
    pytest.importorskip("highdicom", reason="needs highdicom, which the extra 'dicom' brings")
    make_slide(tmp_path / "slides/one.tiff")
    summary = run(predictions, tmp_path / "out", formats=("dicom", "csv"), slides=tmp_path / "slides")
    assert summary.written == {"dicom": 0, "csv": 2}
    reasons = {failure.slide_id: failure.reason for failure in summary.failures}
    assert "slide that is DICOM itself" in reasons["one"]
    assert str(tmp_path) not in reasons["one"]
    assert "give the slides with --slides" in reasons["two"]


def test_pictures_of_a_cohort_share_one_range_unless_another_is_asked_for(predictions: Path, tmp_path: Path) -> None:
    louder = _prediction("three")
    scores = louder.scores.copy()
    scores[:, 1:] *= 8  # which changes no digit
    logits = scores[:, 1:].astype(np.float64).sum(axis=0)
    write_scores(predictions / "scores/three.parquet", replace(louder, scores=scores, logits=logits))

    def said(**options: object) -> dict[str, dict[str, object]]:
        assert run(predictions, tmp_path / "out", formats=("png",), **options).failures == ()
        found = {}
        for slide_id in ("one", "three"):
            with Image.open(tmp_path / "out/overlays" / f"{slide_id}.png") as picture:
                found[slide_id] = json.loads(picture.text["wsimil"])  # type: ignore[attr-defined]  # of PNG images
        return found

    shared = said()
    assert shared["one"]["range"] == shared["three"]["range"]
    assert shared["one"]["normalization"] == "fixed for the cohort, 3 slides"
    assert run(predictions, tmp_path / "out", formats=("dsa",)).failures == ()
    name, ends = read_scores(predictions / "scores/one.parquet").main_score, set()
    for slide_id in ("one", "three"):
        annotations = json.loads((tmp_path / f"out/dsa/{slide_id}.json").read_text(encoding="utf-8"))
        main = [one for one in annotations if one["attributes"]["score"] == name]
        ends |= {one["elements"][0]["rangeValues"][-1] for one in main}
    assert len(ends) == 1
    own = said(range="slide")
    assert own["three"]["range"] == pytest.approx([8 * end for end in own["one"]["range"]])  # type: ignore[attr-defined]
    assert said(range="rank")["one"]["range"] == [0, 1]


@pytest.mark.parametrize("kept", ["one.h5", "predictions.json", "study.json"])
def test_failures_of_an_extraction_or_a_prediction_are_kept(kept: str, predictions: Path, tmp_path: Path) -> None:
    """An export without failures removed them: a slide that had failed was one that was never extracted."""
    out = tmp_path / "out"
    out.mkdir()
    for name in (kept, "failures.csv"):
        (out / name).write_text("slide_id,reason\nb,broken\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"failures.csv would be replaced; choose another output folder"):
        run(predictions, out, formats=("csv",))
    assert (out / "failures.csv").is_file()


def test_two_slides_of_one_id_are_refused(predictions: Path, tmp_path: Path, make_slide) -> None:
    for folder in ("a", "b"):
        make_slide(tmp_path / "slides" / folder / "one.tiff")
    with pytest.raises(ConfigError, match="1 ids are those of more than one file, the first 'one'"):
        run(predictions, tmp_path / "out", slides=tmp_path / "slides")


def test_the_command_counts_names_failures_and_exits_by_them(predictions: Path, tmp_path: Path) -> None:
    arguments = ["export", str(predictions), "--to", "qupath, csv", "-o", str(tmp_path / "out"), "-q", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["written"] == {"qupath": 2, "csv": 2}
    (predictions / "scores/one.parquet").write_bytes(b"nothing")
    result = CliRunner().invoke(app, arguments[:-1])
    assert result.exit_code == 1
    assert "failures.csv" in result.stdout
    assert CliRunner().invoke(app, [*arguments, "--origin", "top"]).exit_code == 2


def test_scores_of_a_prediction_that_did_not_end_are_exported_with_a_note(predictions: Path, tmp_path: Path) -> None:
    (note,) = run(predictions, tmp_path / "out", formats=("csv",)).notes
    assert "score tables of 2 slides and no predictions.csv" in note
    arguments = ["export", str(predictions), "--to", "csv", "-o", str(tmp_path / "out"), "-q"]
    assert "the prediction did not come to its end" in CliRunner().invoke(app, arguments).stdout.replace("\n", " ")
    (predictions / "predictions.csv").write_text("slide_id\n", encoding="utf-8")
    assert run(predictions, tmp_path / "out", formats=("csv",)).notes == ()


def test_every_form_is_described_on_the_command_line() -> None:
    text = CliRunner().invoke(app, ["export", "maps", "--help"], terminal_width=200).stdout
    assert all(name in text for name in FORMATS)
    assert len({(form.folder, form.suffix) for form in FORMATS.values()}) == len(FORMATS)


def test_export_writes_maps_where_no_other_form_is_named() -> None:
    by_default = CliRunner().invoke(app, ["export", "/nowhere", "--to", "csv"])
    named = CliRunner().invoke(app, ["export", "maps", "/nowhere", "--to", "csv"])
    assert (by_default.exit_code, by_default.output) == (named.exit_code, named.output)
    assert by_default.exit_code == 2
    assert "holds no score tables" in by_default.output
    assert {"maps", "html"} <= set(CliRunner().invoke(app, ["export", "--help"]).stdout.split())


def test_features_of_another_slide_of_the_same_name_give_no_picture(predictions: Path, tmp_path: Path) -> None:
    bag = make_bag("one", n=5, dim=3)
    open_store(tmp_path / "features", mode="w").write(bag)
    assert bag.provenance.slide_digest != _prediction("one").grid.slide.digest
    summary = run(predictions, tmp_path / "out", formats=("png",), features=tmp_path / "features")
    assert [failure.slide_id for failure in summary.failures] == ["one"]
    assert "--features holds another slide of this name" in summary.failures[0].reason
    assert not (tmp_path / "out/overlays/one.png").exists()


def test_where_nobody_knows_where_the_scan_begins_nothing_counts_from_there(tmp_path: Path) -> None:
    """Converted features of another tool: QuPath would draw tiles at another place, and nobody could tell."""
    unknown = replace(_prediction("one"), size_known=False, bounds_known=False)
    write_scores(tmp_path / "p/scores/one.parquet", unknown)
    summary = run(tmp_path / "p", tmp_path / "bounds")
    assert {failure.form for failure in summary.failures} == {"qupath", "ome-tiff"}
    assert all("say --origin level0, or convert the features with --slides" in f.reason for f in summary.failures)
    assert run(tmp_path / "p", tmp_path / "level0", origin="level0").failures == ()


def test_a_picture_of_the_whole_slide_is_not_stretched_over_the_tiles_of_a_slide_of_unknown_size(
    tmp_path: Path,
) -> None:
    (tmp_path / "features/thumbnails").mkdir(parents=True)
    Image.new("RGB", (80, 40), (250, 0, 250)).save(tmp_path / "features/thumbnails/one.jpg")
    drawn = {}
    for known in (True, False):
        write_scores(tmp_path / "p/scores/one.parquet", replace(_prediction("one"), size_known=known))
        for features in (None, tmp_path / "features"):
            assert run(tmp_path / "p", tmp_path / "out", formats=("png",), features=features).failures == ()
            drawn[known, features is not None] = (tmp_path / "out/overlays/one.png").read_bytes()
    assert drawn[True, True] != drawn[True, False]
    assert drawn[False, True] == drawn[False, False]
