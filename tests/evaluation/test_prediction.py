"""The type that a model's answer is handed on in."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from wsimil.evaluation.prediction import Prediction
from wsimil.geometry import SlideInfo, TileGrid, TileSpec
from wsimil.targets import Classification, MultiLabel, Regression


def _grid(n: int) -> TileGrid:
    info = SlideInfo(
        slide_id="s",
        path=Path("s.svs"),
        size0_px=(100_000, 1000),
        mpp=0.5,
        mpp_source="metadata",
        mpp_detail="test",
        level_downsamples=(1.0,),
        bounds0_px=(0, 0, 100_000, 1000),
        vendor="test",
        digest="0",
    )
    return TileGrid(
        slide=info,
        spec=TileSpec(size_px=100, mpp=0.5, stride_px=100, min_tissue=0.0),
        xy0=np.stack([np.arange(n) * 100, np.zeros(n)], axis=1).astype(np.int64),
        tissue=np.ones(n, np.float32),
        read_level=0,
        read_px=100,
    )


def _prediction(n: int = 63) -> Prediction:
    scores = np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)
    bias = np.array([0.5, -0.25])
    logits = scores[:, 1:].astype(np.float64).sum(axis=0) + bias
    return Prediction(
        slide_id="s",
        task=Classification(classes=("normal", "tumor")),
        values=np.array([0.25, 0.75]),
        logits=logits,
        bias=bias,
        score_names=("other", "contribution:normal", "contribution:tumor"),
        scores=scores,
        grid=_grid(n),
        model={"method": "abmil", "parts": {"dim": 8}},
    )


LABELS = MultiLabel(columns=("normal", "tumor"), labels=("normal", "tumor"))


@pytest.mark.parametrize("n", [1, 63, 1000])
def test_a_prediction_of_any_size_names_its_class_and_its_scores(n: int) -> None:
    prediction = _prediction(n)
    assert prediction.predicted == "tumor"
    assert np.array_equal(prediction.score("contribution:tumor"), prediction.scores[:, 2])


def test_nothing_in_a_prediction_can_be_changed() -> None:
    prediction = _prediction()
    for array in (prediction.scores, prediction.logits, prediction.bias, prediction.values):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    with pytest.raises(TypeError):
        prediction.model["method"] = "other"  # type: ignore[index]


def test_an_unknown_score_names_those_that_are_there() -> None:
    with pytest.raises(KeyError, match="contribution:normal"):
        _prediction().score("attention")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"slide_id": "t"}, "tiles of 's'"),
        ({"grid": _grid(0), "scores": np.empty((0, 3), np.float32)}, "no tiles"),
        ({"task": Classification(classes=("tumor",))}, "two or more"),
        ({"task": Classification(classes=("a", "b", "c"))}, r"values are float64 \[3\]"),
        ({"values": np.array([0.5, 0.6])}, "sum of 1"),
        ({"values": np.array([-0.5, 1.5])}, ">= 0"),
        ({"task": LABELS, "values": np.array([0.9, 1.2])}, "not >= 0 and <= 1"),
        ({"task": LABELS, "values": np.array([0.9, -0.2])}, "not >= 0 and <= 1"),
        ({"values": np.array([0.5, 0.5], np.float32)}, "float64"),
        ({"logits": np.array([0.0, np.nan])}, "not finite"),
        ({"bias": np.zeros(3)}, r"float64 \[2\]"),
        ({"scores": np.zeros((63, 3))}, "float32"),
        ({"scores": np.zeros((62, 3), np.float32)}, r"\[63, 3\]"),
        ({"scores": np.full((63, 3), np.inf, np.float32)}, "infinite"),
        ({"score_names": ("a", "a", "b")}, "unique"),
        ({"score_names": ("a", "", "b")}, "not empty"),
        ({"bias": np.array([0.5, 0.25])}, "add up to"),
        ({"model": {"x": float("nan")}}, "JSON"),
    ],
)
def test_a_prediction_that_contradicts_itself_is_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(_prediction(), **changes)  # type: ignore[arg-type]


def test_labels_need_not_add_up_to_1_and_a_number_may_be_any() -> None:
    found = dataclasses.replace(_prediction(), task=LABELS, values=np.array([1.0, 0.8]))
    assert found.values.tolist() == [1, 0.8]
    task = Regression(columns=("normal", "tumor")).fitted(["1;2", "3;5"])
    assert dataclasses.replace(_prediction(), task=task, values=np.array([-3.0, 70.0])).values.tolist() == [-3, 70]


def test_a_tile_that_was_not_scored_is_nan_and_allowed() -> None:
    scores = _prediction().scores.copy()
    scores[5] = np.nan
    assert np.isnan(dataclasses.replace(_prediction(), scores=scores).score("contribution:tumor")[5])
