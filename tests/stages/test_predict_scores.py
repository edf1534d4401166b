"""The kinds of scores that predict makes, and what the colors of its overlays span."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from wsimil.cli import app
from wsimil.config import load_config
from wsimil.errors import ConfigError
from wsimil.export.scores import read_scores
from wsimil.export.shown import shown
from wsimil.stages.predict import predict
from wsimil.stages.predict_options import PredictOptions
from wsimil.stages.progress import Quiet
from wsimil.stages.train import train
from wsimil.stages.train_config import TrainConfig
from wsimil.store import open_store

Study = Callable[..., tuple[Path, Path]]
Place = tuple[Path, Path, Path]
SLIDES = range(2, 6)


@pytest.fixture
def place(feature_study: Study, tmp_path: Path) -> Place:
    """Features of four slides, a run that learned from more, and where to answer."""
    features, cohort = feature_study(slides=36)
    learn(features, cohort, tmp_path / "run")
    return some_of(features, tmp_path / "some"), tmp_path / "run", tmp_path / "out"


def some_of(features: Path, some: Path) -> Path:
    source, target = open_store(features, mode="r"), open_store(some, mode="w")
    for number in SLIDES:
        target.write(source.read(f"s{number}"))
    return some


def learn(features: Path, cohort: Path, run: Path, **given: object) -> None:
    options = {"device": "cpu", "fit.epochs": 3, "method.name": "abmil", **given}
    train(load_config(TrainConfig, given=options), features, cohort, run)  # type: ignore[arg-type]


def ask(place: Place, **options: object) -> None:
    features, run, out = place
    assert not predict(run, features, out, options=PredictOptions(device="cpu", origin="level0", **options)).failures  # type: ignore[arg-type]


def pictures(out: Path) -> dict[str, dict[str, object]]:
    found = {}
    for path in sorted((out / "overlays").glob("*.png")):
        with Image.open(path) as picture:
            found[path.stem] = json.loads(picture.text["wsimil"])  # type: ignore[attr-defined]  # of PNG images
    return found


def test_all_overlays_of_a_run_share_one_range_and_say_so(place: Place) -> None:
    ask(place)
    found = pictures(place[2])
    assert len(found) == 4
    assert len({tuple(one["range"]) for one in found.values()}) == 1  # type: ignore[arg-type]
    assert {one["normalization"] for one in found.values()} == {"fixed for the cohort, 4 slides"}
    sizes = []
    for slide_id, one in found.items():
        table = read_scores(place[2] / "scores" / f"{slide_id}.parquet")
        sizes.append(np.abs(shown(table, table.main_score).values))
        assert one["rule"] == "exact"
        assert one["reading"] == "log-odds; 0 = adds nothing"
    end = float(np.quantile(np.concatenate(sizes), 0.99, method="inverted_cdf"))
    assert found["s2"]["range"] == [-end, end]


@pytest.mark.parametrize(
    ("span", "says"), [("slide", "±99th percentile of |score| on this slide"), ("rank", "rank within this slide")]
)
def test_a_range_of_its_own_or_ranks_are_a_choice(span: str, says: str, place: Place) -> None:
    ask(place, range=span)
    found = pictures(place[2])
    assert {one["normalization"] for one in found.values()} == {says}
    assert len({tuple(one["range"]) for one in found.values()}) == (4 if span == "slide" else 1)  # type: ignore[arg-type]


def test_the_kinds_that_are_asked_for_are_stored_with_their_rules(place: Place) -> None:
    ask(place, scores=("single", "leave_one_out"), score="contribution:t")
    table = read_scores(place[2] / "scores/s3.parquet")
    kinds = ("contribution", "single", "leave_one_out")
    assert table.score_names == tuple(f"{kind}:{name}" for kind in kinds for name in "nt")
    assert [table.rule(f"{kind}:t") for kind in kinds] == ["exact", "bags of one tile", "closed form"]
    assert {one["shows"] for one in pictures(place[2]).values()} == {"contribution to t"}


def test_all_kinds_at_once_and_an_overlay_of_single(place: Place) -> None:
    features, run, out = place
    result = CliRunner().invoke(
        app,
        [
            "predict", str(run), str(features), "-o", str(out), "--device", "cpu", "--origin", "level0", "--score", "single:t",
            "--scores", "contribution,single,leave_one_out,integrated_gradients,gradient_x_input,attention",
        ],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    table = read_scores(out / "scores/s3.parquet")
    assert {name.partition(":")[0] for name in table.score_names} == {
        "contribution", "single", "leave_one_out", "integrated_gradients", "gradient_x_input", "attention",
    }  # fmt: skip
    assert {one["reading"] for one in pictures(out).values()} == {"log-odds; 0 = as likely as not"}
    line = next(line for line in result.output.splitlines() if "s3: " in line)
    assert "tiles, effectively " in line
    assert line.endswith(" by attention")


def test_leaving_out_of_large_slides_is_refused_with_the_option_that_allows_it(
    feature_study: Study, tmp_path: Path
) -> None:
    features, cohort = feature_study(slides=36)
    learn(features, cohort, tmp_path / "run", **{"method": {"name": "transmil", "hidden_dim": 24, "heads": 4}})
    some = some_of(features, tmp_path / "some")
    tiles = {slide_id: open_store(some, mode="r").header(slide_id).n for slide_id in ("s2", "s3", "s4", "s5")}
    least, most = min(tiles.values()), max(tiles.values())
    assert least < most

    def allow(count: int) -> tuple[int, str]:
        words = ["predict", str(tmp_path / "run"), str(some), "-o", str(tmp_path / "out"), "--device", "cpu"]
        words += ["--origin", "level0", "--scores", "leave_one_out", "--leave-one-out-tiles", str(count)]
        result = CliRunner().invoke(app, words)
        return result.exit_code, " ".join(result.output.split())

    code, said = allow(most - 1)
    assert code == 1
    failed = {
        row["slide_id"]
        for row in csv.DictReader((tmp_path / "out/failures.csv").read_text(encoding="utf-8").splitlines())
    }
    assert failed == {slide_id for slide_id, count in tiles.items() if count == most}
    assert f"allow it with --leave-one-out-tiles {most} " in said
    code, said = allow(most)
    assert code == 0, said
    for slide_id in tiles:
        table = read_scores(tmp_path / "out/scores" / f"{slide_id}.parquet")
        assert table.rule("leave_one_out:t") == "recomputed"
        assert np.isfinite(table.score("leave_one_out:t")).all()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--scores", "single,lrp"], "unknown kind of score 'lrp'"),
        (["--range", "slides"], "--range 'slides': wanted cohort, slide or rank"),
        (["--score", "single:x"], "score 'single:x' is not given by this model"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_before_anything_is_written(
    options: list[str], says: str, place: Place
) -> None:
    features, run, out = place
    result = CliRunner().invoke(app, ["predict", str(run), str(features), "-o", str(out), *options])
    assert result.exit_code == 2
    assert says in " ".join(result.output.split())
    assert not (out / "scores").exists()


def test_attention_that_a_method_does_not_have_is_refused_where_it_is_asked_for(
    feature_study: Study, tmp_path: Path
) -> None:
    features, cohort = feature_study(slides=36)
    learn(features, cohort, tmp_path / "run", **{"method.name": "pooling"})
    place = (some_of(features, tmp_path / "some"), tmp_path / "run", tmp_path / "out")
    with pytest.raises(ConfigError, match="pools without attention"):
        ask(place, scores=("attention",))
    ask(place, heatmaps=False)
    assert "attention" not in read_scores(tmp_path / "out/scores/s3.parquet").score_names


def test_an_overlay_that_cannot_be_drawn_is_told_and_stops_no_other(place: Place) -> None:
    features, run, out = place

    class Spoiling(Quiet):
        """Breaks a table when overlays begin."""

        def begin(self, what: str, total: int) -> None:
            if what == "overlays":
                (out / "scores/s3.parquet").write_bytes(b"nothing")

    options = PredictOptions(device="cpu", origin="level0")
    summary = predict(run, features, out, options=options, reporter=Spoiling())
    (note,) = [one for one in summary.notes if "overlay" in one]
    assert note.startswith("s3 is answered for, but its overlay could not be drawn: score table ")
    assert not summary.failures
    assert [path.stem for path in sorted((out / "overlays").glob("*.png"))] == ["s2", "s4", "s5"]


def test_a_spreadsheet_runs_no_id_of_a_slide_that_failed(place: Place) -> None:
    features, run, out = place
    (features / "=1+1.h5").write_bytes(b"cut short")
    found = predict(run, features, out, options=PredictOptions(device="cpu", origin="level0", heatmaps=False))
    assert [*found.failures] == ["=1+1"]
    assert (out / "failures.csv").read_text(encoding="utf-8").splitlines()[1].startswith("'=1+1,")


def test_help_fits_eighty_columns() -> None:
    result = CliRunner().invoke(app, ["predict", "--help"], terminal_width=80)
    assert max(len(line) for line in result.output.splitlines()) <= 80
    assert all(option in result.output for option in ("--scores", "--score", "--range"))
