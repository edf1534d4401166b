"""explain-check end to end: who is judged, what is written, what a map may be called, and a slide that fails."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
import torch
from typer.testing import CliRunner

from tests.stages.conftest import write_study
from wsimil.cli import app
from wsimil.config import load_config
from wsimil.errors import CohortError, ConfigError
from wsimil.evaluation.attribution.scoring import score
from wsimil.evaluation.calibration import Calibration
from wsimil.evaluation.class_odds import score_of_odds
from wsimil.evaluation.decision import load_decision, save_decision
from wsimil.evaluation.faithfulness.cohort import rank_correlation
from wsimil.evaluation.faithfulness.flipping import FlipConfig
from wsimil.evaluation.faithfulness.froc import tile_ranking
from wsimil.evaluation.faithfulness.randomized import reinitialized
from wsimil.evaluation.patient import predict_patient
from wsimil.evaluation.truth import connected, read_truth, tile_truth
from wsimil.mil.batch import pack
from wsimil.mil.saved import load_model, save_model
from wsimil.stages.explain_check import ExplainOptions, ExplainSummary, explain_check
from wsimil.stages.train import train
from wsimil.stages.train_config import TrainConfig
from wsimil.store import open_store

QUICK = FlipConfig(shares=(0, 0.1, 0.3, 0.6, 1), top=(0.1,), random_orders=4, inits=1, replicates=200)


def run_train(features: Path, cohort: Path, run: Path, **given: object) -> Path:
    options = {"device": "cpu", "fit.epochs": 8, "fit.lr": 5e-3, "fit.trackers": [], **given}
    train(load_config(TrainConfig, given=options), features, cohort, run)  # type: ignore[arg-type]
    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features, a cohort and a run, trained once."""
    root = tmp_path_factory.mktemp("made")
    features, cohort = write_study(root, slides=60, gap=4.0)
    run_train(features, cohort, root / "run", **{"split.folds": 3})
    return root


@pytest.fixture
def study(made: Path, tmp_path: Path) -> tuple[Path, Path, Path]:
    """Copies, which a test may break."""
    for name in ("features", "run"):
        shutil.copytree(made / name, tmp_path / name)
    shutil.copy(made / "cohort.csv", tmp_path / "cohort.csv")
    return tmp_path / "features", tmp_path / "cohort.csv", tmp_path / "run"


def check(runs: list[Path], features: Path, out: Path, **options: object) -> ExplainSummary:
    return explain_check(runs, features, out, options=ExplainOptions(device="cpu", config=QUICK, **options))  # type: ignore[arg-type]


def test_only_slides_that_the_model_never_saw_are_judged(study: tuple[Path, Path, Path], tmp_path: Path) -> None:
    features, _, run = study
    found = check([run], features, tmp_path / "out", scores=("contribution", "attention"))
    rows = list(csv.DictReader((run / "cohort.csv").read_text(encoding="utf-8").splitlines()))
    test = {row["slide_id"] for row in rows if row["split"] == "test"}
    tree = json.loads((tmp_path / "out/explain.json").read_text(encoding="utf-8"))
    assert {row["unit"] for row in tree["rows"]} == test
    assert found.units == len(test)
    assert tree["left_out"] == {"seen by every model in training": 60 - len(test)}
    assert tree["patients"] == len({row["patient_id"] for row in rows if row["split"] == "test"})
    assert tree == found.tree
    contribution, attention = found.maps
    assert (contribution.score, attention.score) == ("contribution", "attention")
    assert contribution.verdict.beats_random is True
    assert contribution.estimates["completeness_share"].value < 1e-4
    assert contribution.estimates["above_attention"].value == pytest.approx(
        contribution.estimates["srg"].value - attention.estimates["srg"].value
    )
    curves = pq.read_table(tmp_path / "out/curves.parquet").to_pandas()
    own = curves[(curves.unit == sorted(test)[0]) & (curves.score == "contribution") & (curves.order == "most_first")]
    assert own.kept.tolist()[-1] == 1
    assert own.strength.iloc[0] == next(
        row["numbers"]["whole"] for row in tree["rows"] if row["unit"] == sorted(test)[0]
    )
    assert len(curves) == len(test) * (2 * 2 + 2 * 4) * 5


def test_a_calibration_moves_what_is_shown_and_not_what_is_measured_before_it(
    study: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    features, _, run = study
    found = []
    for number, temperature in enumerate((1.0, 6.0)):
        path = run / "decision.json"
        decision = json.loads(path.read_text(encoding="utf-8"))
        decision["calibration"] = {
            "kind": "temperature", "classes": 2, "fitted_on": "val", "rows": 9, "temperature": temperature, "curves": [],
        }  # fmt: skip
        decision["threshold"] = None
        path.write_text(json.dumps(decision), encoding="utf-8")
        found.append(check([run], features, tmp_path / str(number), scores=("contribution", "attention")).maps[0])
    plain, calm = (one.estimates for one in found)
    for name in ("srg", "margin", "above_attention"):
        assert plain[name].value == pytest.approx(plain[f"{name}_uncalibrated"].value, rel=1e-9)
        assert calm[f"{name}_uncalibrated"] == plain[f"{name}_uncalibrated"]
        assert calm[f"{name}_logit"] == plain[f"{name}_logit"]
        assert 0 < calm[name].value < 0.8 * plain[name].value
    page = (tmp_path / "1/explain.html").read_text(encoding="utf-8")
    assert "SRG before calibration" in page
    assert f"{plain['srg'].value:.3f}" in page


def test_a_run_says_the_same_twice_and_of_a_slide_alone(study: tuple[Path, Path, Path], tmp_path: Path) -> None:
    features, _, run = study
    for name in ("a", "b"):
        check([run], features, tmp_path / name, scores=("contribution",))
    for file in ("explain.json", "explain.html"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    tree = json.loads((tmp_path / "a/explain.json").read_text(encoding="utf-8"))
    one = tree["rows"][0]
    source = open_store(features, mode="r").read(one["unit"])
    open_store(tmp_path / "alone", mode="w").write(source)
    single = check([run], tmp_path / "alone", tmp_path / "c", scores=("contribution",))
    assert single.tree["rows"] == [one]
    assert single.maps[0].verdict.beats_random is None


def test_the_page_of_a_map_that_does_not_beat_random_never_says_explanation(
    study: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    features, _, run = study
    good = check([run], features, tmp_path / "good", scores=("contribution",))
    assert good.maps[0].verdict.beats_random is True
    assert "neither learned from" in (tmp_path / "good/explain.html").read_text(encoding="utf-8")
    assert "explanation" in (tmp_path / "good/explain.html").read_text(encoding="utf-8")
    # Even attention over zeros: each map of attention is a random order.
    blind = tmp_path / "blind"
    shutil.copytree(run, blind)
    trained = load_model(run)
    with torch.no_grad():
        for name, value in trained.model.named_parameters():
            if name.startswith("attention"):
                value.zero_()
    save_model(
        blind,
        trained.model,
        method=trained.method,
        task=trained.task,
        features=trained.features,
        training=trained.training,
    )
    for file in blind.glob("decision.json"):
        file.unlink()
    bad = check([blind], features, tmp_path / "bad", scores=("attention",))
    assert bad.maps[0].verdict.beats_random is False
    for file in ("explain.html", "explain.json"):
        text = (tmp_path / "bad" / file).read_text(encoding="utf-8")
        assert "explanation" not in text.lower()
        assert "does not beat random order" in text


def test_the_page_needs_no_script_and_no_network(study: tuple[Path, Path, Path], tmp_path: Path) -> None:
    features, _, run = study
    check([run], features, tmp_path / "out")
    page = (tmp_path / "out/explain.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert not re.findall(r"(?:src|href)=\"(?!#|data:)[^\"]*\"", page)
    assert "default-src 'none'" in page
    tree = json.loads((tmp_path / "out/explain.json").read_text(encoding="utf-8"))
    shown = re.findall(r'<span class="v" data-metric="([^"]+)"[^>]*>([^<]*)</span>', page)
    assert len(shown) > 20
    for where, text in shown:
        node = tree
        for part in where.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            node = node[int(key)] if isinstance(node, list) else node[key]
        if text == "–":
            assert node is None
        else:
            assert float(text.replace("−", "-")) == pytest.approx(node, abs=5.1e-4, rel=6e-4)


def test_runs_of_one_method_are_judged_together_and_their_maps_compared(
    study: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    features, cohort, run = study
    runs = [run.rename(tmp_path / "abmil0")]
    common = {"split.folds": 3, "fit.epochs": 3}
    runs.append(run_train(features, cohort, tmp_path / "abmil1", **common, **{"split.fold": 1}))
    runs.append(run_train(features, cohort, tmp_path / "clam", **common, **{"method.name": "clam"}))
    found = check(runs, features, tmp_path / "out", scores=("contribution",))
    by_method = {one.method: one for one in found.maps}
    assert set(by_method) == {"abmil", "clam"}
    assert by_method["abmil"].runs == ("abmil0", "abmil1")
    assert by_method["abmil"].rows == by_method["abmil"].units > by_method["clam"].units
    assert 0 < by_method["abmil"].estimates["stability"].value <= 1
    assert "stability" not in by_method["clam"].estimates
    assert any("pairs of maps that stability compares" in note for note in found.notes)


def test_maps_of_several_classes_are_read_by_the_answers_of_their_own_models(made: Path, tmp_path: Path) -> None:
    rows = (made / "cohort.csv").read_text(encoding="utf-8").splitlines()
    third = [re.sub(r"(,p\d*[05]),[nt],", r"\1,o,", row) for row in rows]
    assert len({row.split(",")[2] for row in third[1:]}) == 3
    (tmp_path / "cohort.csv").write_text("\n".join(third) + "\n", encoding="utf-8")
    given = {"split.folds": 3, "fit.epochs": 2}
    run = run_train(made / "features", tmp_path / "cohort.csv", tmp_path / "run", **given)
    calibration = Calibration(
        kind="bias_corrected", classes=3, fitted_on="val", rows=9, temperature=0.5, shifts=(3.0, 0.0, -3.0)
    )
    decided = load_decision(run)
    assert decided is not None
    save_decision(run, replace(decided, calibration=calibration, conformal=None))
    found = check([run], made / "features", tmp_path / "out", scores=("contribution",))
    store, trained = open_store(made / "features", mode="r"), load_model(run)
    fresh = reinitialized(trained.model, trained.method, seed=QUICK.seed)
    for row in found.tree["rows"]:
        bag = store.read(row["unit"])
        batch = pack([np.array(bag.features)], xy0=[bag.grid.xy0], slide_ids=[row["unit"]])
        output = trained.task.outputs.index(row["said"])
        maps = []
        for model, moved in ((trained.model, calibration), (fresh, None)):
            parts, z = score(model, batch, "contribution").values, model(batch).logits[0]
            numbers = (one.detach().double().numpy() for one in (parts, z))
            maps.append(score_of_odds("contribution", *numbers, output, moved))
        assert row["numbers"]["randomized"] == pytest.approx(rank_correlation(*maps), abs=1e-9)
        assert row["numbers"]["completeness_gap"] < 1e-5


def test_leaving_out_of_large_slides_is_judged_where_it_is_allowed(made: Path, tmp_path: Path) -> None:
    method = {"name": "transmil", "hidden_dim": 24, "heads": 4}
    given = {"method": method, "split.folds": 3, "fit.epochs": 1}
    run = run_train(made / "features", made / "cohort.csv", tmp_path / "run", **given)
    store = open_store(made / "features", mode="r")

    def judged(most_tiles: int) -> ExplainSummary:
        options = ExplainOptions(
            device="cpu",
            scores=("single", "leave_one_out"),
            config=QUICK.model_copy(update={"leave_one_out_tiles": most_tiles}),
        )
        return explain_check([run], made / "features", tmp_path / "out", options=options)

    few = judged(2)
    assert [one.score for one in few.maps] == ["single"]
    (note,) = [note for note in few.notes if "leave_one_out" in note]
    assert "allow it with --leave-one-out-tiles" in note
    most = max(store.header(row["unit"]).n for row in few.tree["rows"])
    all_ = judged(most)
    assert not all_.failures
    assert [one.score for one in all_.maps] == ["single", "leave_one_out"]
    rows = [row for row in all_.tree["rows"] if row["score"] == "leave_one_out"]
    assert {row["rule"] for row in rows} == {"recomputed"}
    assert all("randomized" in row["numbers"] for row in rows)


def test_a_bad_slide_is_named_and_stops_nothing(study: tuple[Path, Path, Path], tmp_path: Path) -> None:
    features, _, run = study
    rows = list(csv.DictReader((run / "cohort.csv").read_text(encoding="utf-8").splitlines()))
    broken = next(row["slide_id"] for row in rows if row["split"] == "test")
    (features / f"{broken}.h5").write_bytes(b"not a file")
    result = CliRunner().invoke(
        app, ["explain-check", str(run), "--features", str(features), "-o", str(tmp_path / "out"), "--device", "cpu", "-q",
              "--set", "shares=[0,0.5,1]", "--set", "random_orders=2", "--set", "inits=0", "--set", "replicates=100"],
    )  # fmt: skip
    assert result.exit_code == 1
    assert broken in result.output
    assert "beats it" in result.output
    tree = json.loads((tmp_path / "out/explain.json").read_text(encoding="utf-8"))
    assert list(tree["failures"]) == [broken]
    assert tree["units"] > 5


def test_a_judgement_that_fails_leaves_no_earlier_one_in_its_place(
    study: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    features, _, run = study
    check([run], features, tmp_path / "out", scores=("contribution",))
    assert (tmp_path / "out/explain.html").is_file()
    for path in features.glob("*.h5"):
        path.write_bytes(b"cut short")
    with pytest.raises(CohortError, match="could be judged"):
        check([run], features, tmp_path / "out", scores=("contribution",))
    assert not list((tmp_path / "out").iterdir())


def test_the_summary_fits_eighty_columns_and_json_is_the_file(study: tuple[Path, Path, Path], tmp_path: Path) -> None:
    features, cohort, run = study
    quick = ["--set", "shares=[0,0.5,1]", "--random-orders", "2", "--set", "inits=0", "--set", "replicates=100", "-q"]
    words = [
        "explain-check",
        str(run),
        "--features",
        str(features),
        "--cohort",
        str(cohort),
        "-o",
        str(tmp_path / "out"),
    ]
    shown = CliRunner(env={"COLUMNS": "80"}).invoke(app, [*words, *quick, "--scores", "contribution,attention"])
    assert shown.exit_code == 0, shown.output
    table = [line for line in shown.output.splitlines() if "contribution" in line and "yes" in line]
    assert table
    assert max(map(len, table)) <= 80
    told = CliRunner().invoke(app, [*words, *quick, "--json", "--scores", "contribution"])
    assert json.loads(told.stdout) == json.loads((tmp_path / "out/explain.json").read_text(encoding="utf-8"))
    wrong = CliRunner().invoke(app, [*words, "--scores", "saliency"])
    assert wrong.exit_code == 2
    assert "saliency" in wrong.output


def write_truth(folder: Path, features: Path, name: str = "T") -> None:
    """Every second tile of slides of class t is true: those whose features were moved."""
    folder.mkdir()
    store = open_store(features, mode="r")
    for slide in store.ids():
        grid = store.read(slide).grid
        positive = int(slide[1:]) // 3 % 2 == 1 or int(slide[1:]) % 3 == 1
        boxes = [shapely.box(x, y, x + grid.size0, y + grid.size0) for x, y in grid.xy0[::2]] if positive else []
        drawn = [
            {"type": "Feature", "geometry": shapely.geometry.mapping(box),
             "properties": {"classification": {"name": name}, "metadata": {"wsimil.origin": "level0"}}}
            for box in boxes
        ]  # fmt: skip
        (folder / f"{slide}.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": drawn}))


def test_maps_are_held_against_what_pixels_are_known_to_be(study: tuple[Path, Path, Path], tmp_path: Path) -> None:
    features, _, run = study
    write_truth(tmp_path / "truth", features)
    found = check([run], features, tmp_path / "out", truth=tmp_path / "truth", scores=("contribution",))
    one = found.maps[0]
    assert found.tree["truth_output"] == "t"
    assert one.froc is not None
    assert one.froc.slides == found.units
    assert 0 <= one.estimates["tile_auroc"].value <= 1
    assert "FROC" in (tmp_path / "out/explain.html").read_text(encoding="utf-8")
    renamed = tmp_path / "renamed"
    write_truth(renamed, features, name="metastasis")
    with pytest.raises(ConfigError, match="files name metastasis, the model gives n, t"):
        check([run], features, tmp_path / "no", truth=renamed)
    with pytest.raises(ConfigError, match="none of it 't'"):
        check([run], features, tmp_path / "out", truth=renamed, truth_output="t")
    assert (tmp_path / "out/explain.html").is_file()
    same = check(
        [run], features, tmp_path / "same", truth=renamed, truth_output="t=metastasis", scores=("contribution",)
    )
    assert same.maps[0].froc == one.froc
    with pytest.raises(ConfigError, match="holds no file"):
        check([run], features, tmp_path / "none", truth=tmp_path / "out")


def test_lesions_that_meet_once_grown_are_counted_once_and_tiles_are_ranked_as_before(
    study: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    features, _, run = study
    write_truth(tmp_path / "truth", features)
    plain, wide = (
        check(
            [run],
            features,
            tmp_path / str(margin),
            truth=tmp_path / "truth",
            truth_margin_um=margin,
            scores=("contribution",),
        )
        for margin in (0.0, 10_000.0)
    )
    assert plain.maps[0].froc is not None
    assert wide.maps[0].froc is not None
    assert wide.maps[0].froc.lesions < plain.maps[0].froc.lesions
    assert wide.maps[0].froc.at[0] == 1.0, "the one lesion of a slide is found by whichever tile is highest"
    assert wide.maps[0].estimates["tile_auroc"] == plain.maps[0].estimates["tile_auroc"]
    assert (plain.tree["truth_margin_um"], wide.tree["truth_margin_um"]) == (0.0, 10_000.0)
    assert "grown by" in (tmp_path / "10000.0/explain.html").read_text(encoding="utf-8")
    assert "grown by" not in (tmp_path / "0.0/explain.html").read_text(encoding="utf-8")


def test_maps_of_patients_are_held_against_the_truth_of_each_of_their_slides(made: Path, tmp_path: Path) -> None:
    features = made / "features"
    run = run_train(features, made / "cohort.csv", tmp_path / "run", **{"bag": "patient", "split.folds": 3})
    write_truth(tmp_path / "truth", features)
    unknown = sorted((tmp_path / "truth").iterdir())[0]
    unknown.unlink()
    found = check(
        [run],
        features,
        tmp_path / "out",
        cohort_csv=made / "cohort.csv",
        truth=tmp_path / "truth",
        scores=("contribution",),
    ).maps[0]
    rows = csv.DictReader((made / "cohort.csv").read_text(encoding="utf-8").splitlines())
    owners = {row["slide_id"]: row["patient_id"] for row in rows}
    store, trained = open_store(features, mode="r"), load_model(run)
    judged = {row["unit"] for row in json.loads((tmp_path / "out/explain.json").read_text(encoding="utf-8"))["rows"]}
    each, slides, lesions = [], 0, 0
    for patient in sorted(judged):
        bags = [store.read(slide) for slide, owner in sorted(owners.items()) if owner == patient]
        positive, scores = [], []
        for bag, one in zip(bags, predict_patient(trained, patient, bags), strict=True):
            path = tmp_path / "truth" / f"{bag.slide_id}.geojson"
            if path == unknown:
                continue
            outlines = connected(read_truth(path).polygons)
            positive.append(tile_truth(bag.grid, outlines) >= 0.5)
            scores.append(one.score("contribution:t").astype(np.float64))
            slides, lesions = slides + 1, lesions + len(outlines.geoms)
        if positive:
            each.append(tile_ranking(np.concatenate(positive), np.concatenate(scores))[0])
    assert found.froc is not None
    assert (found.froc.slides, found.froc.lesions) == (slides, lesions)
    assert slides > found.patients
    assert found.estimates["tile_auroc"].value == pytest.approx(np.nanmean(each), abs=1e-6)


def test_what_cannot_be_judged_is_refused(study: tuple[Path, Path, Path], tmp_path: Path) -> None:
    features, cohort, run = study
    with pytest.raises(ConfigError, match=r"model\.json"):
        check([run], features, run)
    with pytest.raises(ConfigError, match="given twice"):
        check([run, run], features, tmp_path / "out")
    with pytest.raises(CohortError, match="not of the split 'holdout'"):
        check([run], features, tmp_path / "out", split="holdout")
    moved = tmp_path / "moved.csv"
    moved.write_text(re.sub(r"^(s\d+),p(\d+)", r"\1,q\2", cohort.read_text(), flags=re.M))
    with pytest.raises(CohortError, match="belongs to patient"):
        check([run], features, tmp_path / "out", cohort_csv=moved)
    store = open_store(features, mode="w")
    for bag in map(store.read, store.ids()):
        encoder = {**bag.provenance.encoder, "weights": "others"}
        store.write(replace(bag, provenance=replace(bag.provenance, encoder=encoder)))
    says = "do not fit the model.*; give features that the model's encoder and tiling made"
    with pytest.raises(CohortError, match=says):
        check([run], features, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_imported_model_whose_cohort_is_not_known_says_so(study: tuple[Path, Path, Path], tmp_path: Path) -> None:
    features, _, run = study
    (run / "cohort.csv").unlink()
    found = check([run], features, tmp_path / "out", scores=("contribution",))
    assert found.units == 60
    assert any("is not known" in note and "more faithful than they are" in note for note in found.notes)
    assert "neither learned from" not in (tmp_path / "out/explain.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["survival/cox_abmil", "regression/gated_abmil"])
def test_values_are_judged_in_their_own_unit(kind: str, tmp_path: Path) -> None:
    features, cohort = write_study(tmp_path, slides=36, gap=4.0)
    rows = list(csv.DictReader(cohort.read_text().splitlines()))
    high = [row["label"] == "t" for row in rows]
    if kind.startswith("survival"):
        header = "time,event"
        cells = [f"{(2 if h else 20) + 0.1 * i},{int(i % 4 != 0)}" for i, h in enumerate(high)]
        given: dict[str, object] = {"task.kind": "survival", "task.model": "cox", "fit.batch_bags": 16}
    else:
        header = "age"
        cells = [f"{(70 if h else 50) + 0.1 * i}" for i, h in enumerate(high)]
        given = {"task.kind": "regression", "task.columns": ["age"], "task.unit": "years"}
    lines = [f"{row['slide_id']},{row['patient_id']},{cell}" for row, cell in zip(rows, cells, strict=True)]
    table = tmp_path / "table.csv"
    table.write_text("\n".join([f"slide_id,patient_id,{header}", *lines]) + "\n")
    run = run_train(features, table, tmp_path / "run", **given, **{"split.folds": 3})
    found = check([run], features, tmp_path / "out", scores=("contribution",))
    assert found.maps[0].measure == "value"
    assert found.maps[0].estimates["margin"].value > 0
    assert found.maps[0].estimates["srg"].value == pytest.approx(
        np.mean([row["numbers"]["srg"] for row in found.tree["rows"]])
    )


def test_all_slides_of_a_patient_are_flipped_as_one_bag(made: Path, tmp_path: Path) -> None:
    run = run_train(made / "features", made / "cohort.csv", tmp_path / "run", **{"bag": "patient", "split.folds": 3})
    with pytest.raises(ConfigError, match="give --cohort"):
        check([run], made / "features", tmp_path / "no")
    out = tmp_path / "out"
    found = check([run], made / "features", out, cohort_csv=made / "cohort.csv", scores=("contribution",))
    assert found.unit == "patient"
    assert found.units == found.patients
    rows = csv.DictReader((made / "cohort.csv").read_text(encoding="utf-8").splitlines())
    owners = {row["slide_id"]: row["patient_id"] for row in rows}
    counts = {row["unit"]: row["tiles"] for row in found.tree["rows"]}
    store = open_store(made / "features", mode="r")
    for patient, tiles in counts.items():
        assert tiles == sum(store.header(slide).n for slide, owner in owners.items() if owner == patient)
    assert max(counts.values()) > 20
    features = shutil.copytree(made / "features", tmp_path / "features")
    whole = {patient for patient in counts if [*owners.values()].count(patient) > 1}
    (features / f"{max(slide for slide, owner in owners.items() if owner in whole)}.h5").unlink()
    fewer = check([run], features, tmp_path / "fewer", cohort_csv=made / "cohort.csv", scores=("contribution",))
    assert fewer.units == found.units - 1
    assert fewer.tree["left_out"]["lacking features of a slide"] == 1
