"""The picture: what it shows, where, and that nothing in it is taken for markup."""

from __future__ import annotations

import dataclasses
import io
import json
import re

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from wsimil.export.heatmap import rank_heatmap, raw_heatmap
from wsimil.export.overlay import overlay, tint
from wsimil.export.page import Page, Style, shorten, text_width
from wsimil.export.png import render_png, write_png
from wsimil.export.scores import ScoreTable, score_table
from wsimil.targets import MultiLabel


def _render(table: ScoreTable, score: str | None = None, **options: NDArray[np.uint8]) -> Image.Image:
    picture = Image.open(io.BytesIO(render_png(table, raw_heatmap(table, score or table.main_score), **options)))
    picture.load()
    return picture


def _noted(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[float, float]]:
    """What is written on pages from now on, and where, page px."""
    said: dict[str, tuple[float, float]] = {}
    draw = Page.text

    def note(page: Page, x: float, y: float, text: str, style: Style, **room: object) -> None:
        said[text] = x, y
        draw(page, x, y, text, style, **room)  # type: ignore[arg-type]  # as it was called

    monkeypatch.setattr(Page, "text", note)
    return said


@pytest.mark.parametrize(
    "size0_px", [(300, 200), (4000, 3000), (60_000, 2000), (900, 60_000), (8, 100_000), (100_000, 80_000)]
)
def test_a_slide_of_any_shape_gives_a_picture_of_bounded_size(size0_px: tuple[int, int], make_prediction) -> None:
    picture = _render(score_table(make_prediction(size0_px=size0_px, n=1000)))
    facts = json.loads(picture.text["wsimil"])  # type: ignore[attr-defined]  # of PNG images
    x, y, width, height = facts["frame_px"]
    assert x + width <= picture.width <= 1600
    assert y + height <= picture.height <= 1100
    assert max(width / 1120, height / 880) == 1


@pytest.mark.parametrize(
    ("size0_px", "mpp"), [((4000, 3000), 0.25), ((300, 200), 0.5), ((100_000, 80_000), 0.22), ((900, 60_000), 0.5)]
)
def test_the_scale_bar_is_as_long_as_it_says_in_the_picture_above_it(
    size0_px: tuple[int, int], mpp: float, make_prediction, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a slide so narrow that its picture is widened it was too short by half."""
    said = _noted(monkeypatch)
    picture = _render(score_table(make_prediction(size0_px=size0_px, mpp=mpp, n=63)))
    x, y, width, height = json.loads(picture.text["wsimil"])["frame_px"]  # type: ignore[attr-defined]  # of PNG images
    ink = np.asarray(picture.convert("L"))[y + height + 22, x:] < 80
    length_px = int(np.argmin(ink))
    named = next(text for text in said if re.fullmatch(r"[\d.]+ (µm|mm)", text))
    number, unit = named.split()
    length_um = float(number) * {"µm": 1, "mm": 1000}[unit]
    assert length_px * size0_px[0] / width * mpp == pytest.approx(length_um, rel=0.02)
    assert 79 <= length_px <= 201


@pytest.mark.parametrize("n", [1, 63])
def test_names_of_any_length_and_script_are_only_text(n: int, make_prediction) -> None:
    names = ("$\\frac{tumor$ %s <b>", "日本語\x00\n", "x" * 5000)
    _render(score_table(make_prediction(n=n, classes=names, slide_id="$_{" + "s" * 3000 + "\n")))


def test_many_classes_fit_on_the_page(make_prediction) -> None:
    picture = _render(score_table(make_prediction(n=63, size0_px=(60_000, 1000), classes=tuple("abcdefghijklmnop"))))
    rows = np.asarray(picture.convert("L")).min(axis=1)
    assert rows[-20:].min() == 255


def test_the_answer_for_a_patient_is_not_called_the_slides(make_prediction, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(Page, "text", lambda _self, _x, _y, text, *_style, **_room: said.append(text))
    table = score_table(make_prediction(n=63))
    _render(dataclasses.replace(table, model={**table.model, "patient": "p7"}))
    assert any(text.startswith(f"Predicted for patient p7: {table.predicted}, ") for text in said)
    assert "Probability of the patient" in said
    _render(table)
    assert any(text.startswith(f"Predicted: {table.predicted}, ") for text in said)


@pytest.mark.parametrize(
    ("scores", "end", "low", "high"),
    [
        ((-3, 1), 1.5, "≤ −1.5", "1.5"),
        ((-1, 3), 1.5, "−1.5", "≥ 1.5"),
        ((-1.5, 1.5), 1.5, "−1.5", "1.5"),
        ((-3, 3), 12.0, "−12", "12"),
        ((-3, 3), 99.7, "−100", "100"),
    ],
)
def test_a_legend_tells_what_its_colors_mean_and_whether_scores_lie_beyond(
    scores: tuple[float, float], end: float, low: str, high: str, make_prediction, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = _noted(monkeypatch)
    table = score_table(make_prediction(n=63, tumor=np.linspace(*scores, 63, dtype=np.float32)))
    heatmap = raw_heatmap(table, "contribution:tumor", cohort_range=(-end, end))
    ramp = np.asarray(Image.open(io.BytesIO(render_png(table, heatmap))), np.int64)
    assert {"blue: against, orange: for", "colors: fixed for the cohort", "made by: exact"} <= said.keys()
    (x0, y0), (x1, y1) = said[low], said[high]
    left, right = ramp[int(y0) - 23, int(x0) + 3], ramp[int(y1) - 23, int(x1) - 3]
    assert left[2] - left[0] > 50 < right[0] - right[2]
    assert int(x0) < said["0"][0] < int(x1)
    said.clear()
    render_png(table, raw_heatmap(table, "attention"))
    assert "violet: low, yellow: high" in said


def test_answers_stand_beside_their_numbers_the_highest_first(make_prediction, monkeypatch: pytest.MonkeyPatch) -> None:
    said = _noted(monkeypatch)
    values = np.array([0.05, 0.6, 0.35])
    table = dataclasses.replace(score_table(make_prediction(n=63, classes=("a", "b", "c"))), values=values)
    picture = np.asarray(_render(table).convert("L"))
    heights = [said[name][1] for name in ("b", "c", "a")]
    assert heights == sorted(heights) == [said[number][1] for number in ("0.600", "0.350", "0.050")]
    left = int(said["b"][0]) + 142
    bars = [int(np.argmin(picture[int(y), left:] < 140)) for y in heights]
    np.testing.assert_allclose(np.array(bars) / sum(bars), [0.6, 0.35, 0.05], atol=0.02)


def test_the_least_probable_of_many_classes_are_told_together(make_prediction, monkeypatch: pytest.MonkeyPatch) -> None:
    said = _noted(monkeypatch)
    values = np.array([0.005, 0.01, 0.015, 0.02, *[0.095] * 10])
    table = score_table(make_prediction(n=63, classes=tuple("abcdefghijklmn")))
    _render(dataclasses.replace(table, values=values))
    # Of ten that are alike the first eight are told.
    assert set("efghijkl") <= said.keys()
    assert not set("abcdmn") & said.keys()
    assert said["6 more, together"][1] == said["0.240"][1]


def test_labels_stand_in_their_own_order_and_are_never_added_up(
    make_prediction, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = _noted(monkeypatch)
    labels, values = tuple("abcdefghij"), np.arange(1, 11) / 20
    table = score_table(make_prediction(n=63, classes=labels))
    _render(dataclasses.replace(table, task=MultiLabel(columns=labels, labels=labels), values=values))
    heights = [said[name][1] for name in labels[:8]]
    assert heights == sorted(heights) == [said[f"{value:.3f}"][1] for value in values[:8]]
    assert "2 more" in said


def test_the_same_table_gives_the_same_bytes(make_prediction) -> None:
    table = score_table(make_prediction(n=63))
    heatmap = rank_heatmap(table, "attention")
    assert render_png(table, heatmap) == render_png(table, heatmap)


def test_a_table_without_attention_has_a_picture_too(make_prediction) -> None:
    table = score_table(make_prediction(n=63))
    _render(dataclasses.replace(table, score_names=table.score_names[1:], scores=table.scores[:, 1:].copy()))


def test_signed_scores_are_transparent_at_zero_and_part_in_hue() -> None:
    ground = np.full((3, 3), 200, np.float32)
    colors = tint(np.array([-1, 0, 1], np.float32), (-1.0, 1.0), "signed", ground)
    assert colors[0, 2] > colors[0, 0]
    assert np.array_equal(colors[1], ground[1])
    assert colors[2, 0] > colors[2, 2]


@pytest.mark.parametrize("kind", ["signed", "sequential"])
def test_scores_beyond_the_range_look_like_its_ends(kind) -> None:
    ground = np.full((4, 3), 200, np.float32)
    colors = tint(np.array([-9, -1, 1, 9], np.float32), (-1.0, 1.0), kind, ground)
    assert np.array_equal(colors[0], colors[1])
    assert np.array_equal(colors[2], colors[3])


@pytest.mark.parametrize("score", ["attention", "contribution:tumor"])
def test_area_that_was_not_scored_is_grey_and_never_looks_like_a_low_score(score: str, make_prediction) -> None:
    table = score_table(make_prediction(size0_px=(2240, 2240), n=50))
    pink = np.full((100, 100, 3), (230, 160, 200), np.uint8)
    picture = overlay(raw_heatmap(table, score), pink, shape=(200, 200)).astype(int)
    scored, unscored = picture[:95], picture[105:]
    assert (np.ptp(unscored, axis=2) == 0).all()
    assert (np.ptp(scored, axis=2) > 20).all()


def test_a_thin_line_goes_all_around_what_is_scored(make_prediction) -> None:
    table = score_table(make_prediction(size0_px=(2240, 2240), n=1))
    heatmap = dataclasses.replace(raw_heatmap(table, "attention"), xy0=np.array([[448, 672]]))
    nothing = dataclasses.replace(heatmap, values=np.array([np.nan], np.float32))
    picture, plain = (overlay(one, None, shape=(20, 20)) for one in (heatmap, nothing))
    changed = np.zeros((20, 20), np.bool_)
    changed[5:9, 4:6] = changed[6:8, 3:7] = True  # the tile, and what touches it
    np.testing.assert_array_equal((picture != plain).any(axis=2), changed)


def test_a_thumbnail_of_another_type_is_refused(make_prediction) -> None:
    table = score_table(make_prediction(n=63))
    with pytest.raises(ValueError, match=r"uint8 \[h, w, 3\]"):
        _render(table, thumbnail=np.zeros((9, 9, 4), np.uint8))


def test_long_text_is_cut_in_its_middle_to_the_room_it_has() -> None:
    style = Style(size_px=13)
    assert shorten("short", style, 100) == "short"
    cut = shorten("start" + "x" * 1000 + "end", style, 100)
    assert cut.startswith("start")
    assert cut.endswith("end")
    assert text_width(cut, style) <= 100


def test_a_picture_lies_on_the_page_px_by_px() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (63, 41, 3), dtype=np.uint8)
    page = Page(200, 101)
    page.picture(17, 5, pixels)
    drawn = np.asarray(Image.open(io.BytesIO(page.png({}))))
    assert np.array_equal(drawn[5 : 5 + 63, 17 : 17 + 41], pixels)
    assert (drawn[:5] == 255).all()


def test_a_written_file_is_the_picture(make_prediction, tmp_path) -> None:
    table = score_table(make_prediction(n=63))
    heatmap = raw_heatmap(table, "attention")
    write_png(tmp_path / "a.png", table, heatmap)
    assert (tmp_path / "a.png").read_bytes() == render_png(table, heatmap)
