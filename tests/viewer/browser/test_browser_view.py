"""What a browser shows of a slide is where and what the scores say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.viewer.browser.conftest import Look, Open
from tests.viewer.browser.made_page import (
    DARK,
    HOSTILE,
    RANGE,
    SIZE0_PX,
    Lattice,
    drawn_table,
    grey_picture,
    write_page,
)
from wsimil.export.scores import EXACT, ScoreTable
from wsimil.export.shown import shown
from wsimil.export.viewer.built import Built
from wsimil.targets import Ordinal

BLUE, ORANGE = (0x21, 0x66, 0xAC), (0xE6, 0x61, 0x01)


@pytest.fixture(scope="module")
def page(built: Built, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ScoreTable]:
    """One slide on a lattice of fractional sides."""
    table = drawn_table(Lattice(), unscored=(0, 30))
    path = tmp_path_factory.mktemp("page") / "page.html"
    return write_page(path, built, [table], {"slide-a": grey_picture()}), table


@pytest.fixture
def plain(page: tuple[str, ScoreTable], look: Open) -> tuple[Look, ScoreTable]:
    """The same, open."""
    return look(page[0]), page[1]


def pixel(one: Look, picture: NDArray[np.uint8], x0: float, y0: float) -> NDArray[np.uint8]:
    x, y = one.place(x0, y0)
    return picture[int(y), int(x)]


def center(table: ScoreTable, tile: int) -> tuple[float, float]:
    x, y = (table.xy0[tile] + table.size0 / 2).tolist()
    return x, y


def color(value: float) -> tuple[int, ...]:
    """Of a signed score at opacity 0.5 and threshold 0."""
    return (*(BLUE if value < 0 else ORANGE), round(255 * 0.5 * min(1.0, abs(value) / RANGE)))


def test_the_page_loads_without_a_complaint_and_asks_for_nothing_but_itself(plain: tuple[Look, ScoreTable]) -> None:
    one, _ = plain
    assert one.page.title() == "slide-a · wsimil"
    assert one.complaints == []
    assert all(url.startswith(("file:", "data:", "blob:")) for url in one.asked)
    assert sum(url.startswith("file:") for url in one.asked) == 1


def test_every_tile_has_the_color_of_its_score(plain: tuple[Look, ScoreTable]) -> None:
    one, table = plain
    state = one.state()
    assert state["score"] == f"contribution:{table.predicted}"
    values, heat = shown(table, state["score"]).values, one.heat()
    for tile in np.flatnonzero(~np.isnan(values)):
        found = pixel(one, heat, *center(table, int(tile)))
        wanted = color(float(values[tile]))
        # A table of 1024 steps over the range is off by half a step, less than one of 255 alphas.
        assert abs(int(found[3]) - wanted[3]) <= 1
        # Canvas pixels hold colors times alpha, so colors of faint tiles come back coarse.
        if wanted[3] > 60:
            np.testing.assert_allclose(found[:3], wanted[:3], atol=3)


def test_a_tile_without_a_score_does_not_look_like_one_with_a_low_score(plain: tuple[Look, ScoreTable]) -> None:
    one, table = plain
    x, y = (round(value) for value in one.place(*center(table, 30)))
    around = one.heat()[y - 6 : y + 6, x - 6 : x + 6]
    assert around[..., 3].min() > 0
    assert len(np.unique(around.reshape(-1, 4), axis=0)) == 2


@pytest.mark.parametrize(
    "lattice",
    [
        Lattice(size0=400.0, stride0=100.0, columns=12, rows=10),
        Lattice(size0=400.0, stride0=200.0, columns=12, rows=10),
        Lattice(size0=400.6, stride0=200.3, columns=12, rows=10),
        Lattice(size0=80.6, stride0=40.3, columns=60, rows=50),
        Lattice(size0=300.0, stride0=420.7, columns=8, rows=7),
    ],
    ids=["a quarter apart", "half apart", "fractional", "smaller than 16 px", "with gaps"],
)
def test_overlapping_tiles_show_their_mean(built: Built, look: Open, tmp_path: Path, lattice: Lattice) -> None:
    table = drawn_table(lattice)
    one = look(write_page(tmp_path / "page.html", built, [table]))
    values, heat = shown(table, one.state()["score"]).values, one.heat()
    scale = one.state()["placement"]["scale"]
    rng = np.random.default_rng(1)
    tried = 0
    for _ in range(300):
        spot = rng.uniform(table.xy0.min(axis=0), table.xy0.max(axis=0) + table.size0)
        x, y = one.place(*spot.tolist())
        # The center of the pixel that was hit, which is where its color is taken.
        exact = spot + (np.floor([x, y]) + 0.5 - [x, y]) / scale
        from_edges = np.abs(exact - np.concatenate([table.xy0, table.xy0 + table.size0]))
        if from_edges.min() < 1:
            continue  # corners are rounded to whole px, so what is within one of an edge may be either
        tried += 1
        covering = ((table.xy0 <= exact) & (exact < table.xy0 + table.size0)).all(axis=1)
        alpha = int(heat[int(y), int(x), 3])
        if covering.any():
            assert abs(alpha - color(float(values[covering].astype(np.float64).mean()))[3]) <= 1
        else:
            assert alpha == 0
    assert tried > 100


def test_the_slide_and_the_heat_agree_wherever_one_goes(plain: tuple[Look, ScoreTable]) -> None:
    one, _ = plain
    one.page.locator(".pane").hover()
    for _ in range(200):  # the page leaves out turns of the wheel that follow each other too closely
        if one.state()["placement"]["scale"] > 1:
            break
        one.page.mouse.wheel(0, -240)
        one.page.keyboard.press("Shift+ArrowRight")
        # While it moves, too.
        for x0, y0 in ((0, 0), SIZE0_PX, (1234.5, 987.25)):
            heat, slide = one.page.evaluate(f"[wsimil.heatToViewer({x0}, {y0}), wsimil.imageToViewer({x0}, {y0})]")
            assert np.abs(np.subtract(heat, slide)).max() < 0.01
    one.still()
    assert one.state()["placement"]["scale"] > 1


def test_pixels_of_the_slide_and_of_the_heat_have_the_same_edges(built: Built, look: Open, tmp_path: Path) -> None:
    """A dark rectangle that is one tile: what is drawn, not only what is meant."""
    lattice = Lattice(size0=253.3, stride0=253.3)
    drawn = drawn_table(lattice)
    scores = np.zeros_like(drawn.scores)
    scores[:, 0] = 1 / len(drawn)
    tile = 5 * lattice.columns + 6
    scores[tile, drawn.score_names.index(drawn.main_score)] = RANGE
    table = replace(drawn, scores=scores)
    left, top = table.xy0[tile].tolist()
    dark = (left, top, left + 253, top + 253)
    one = look(write_page(tmp_path / "page.html", built, [table], {"slide-a": grey_picture(dark=dark)}))
    one.page.locator(".pane").hover()
    for zoom in ("5 times", "10 times", "40 times"):
        one.tab("Tiles")
        one.page.locator(".tile").first.click()
        one.still()
        one.page.get_by_role("button", name=zoom).click()
        one.still()
        one.until("wsimil.complete()")
        scale = one.state()["placement"]["scale"]
        slide_pixels = one.slide()
        darkness = (slide_pixels[..., 0] < (230 + DARK) / 2) & (slide_pixels[..., 3] == 255)
        hot = one.heat()[..., 3] > 0
        for axis in (0, 1):
            slide, heat = (np.flatnonzero(mask.any(axis=axis)) for mask in (darkness, hot))
            # Whole px on both sides, and 0.3 of a level-0 px by which the tile is larger than the rectangle.
            assert abs(slide[0] - heat[0]) <= 1
            assert abs(slide[-1] - heat[-1]) <= 1 + 0.3 * scale


def test_no_picture_of_the_slide_is_cleared_around(built: Built, look: Open, tmp_path: Path) -> None:
    """OpenSeadragon took a data: URL with "png" in it for a transparent picture; Firefox left bright seams."""
    one = look(write_page(tmp_path / "page.html", built, [drawn_table(Lattice())], {"slide-a": grey_picture()}))
    one.page.evaluate(
        """() => {
            window.cleared = [];
            const slide = document.querySelector(".openseadragon-canvas canvas");
            const {clearRect, drawImage} = CanvasRenderingContext2D.prototype;
            Object.assign(CanvasRenderingContext2D.prototype, {
                clearRect(...box) { if (this.canvas === slide) window.cleared.push(box); clearRect.apply(this, box); },
                drawImage(...all) { if (this.canvas === slide) window.drawn = true; drawImage.apply(this, all); },
            });
        }"""
    )
    one.page.keyboard.press("+")
    one.still()
    drawn, cleared, whole = one.page.evaluate(
        "(slide => [window.drawn, window.cleared, [0, 0, slide.width, slide.height]])"
        "(document.querySelector('.openseadragon-canvas canvas'))"
    )
    assert drawn
    assert all(box == whole for box in cleared), cleared


def test_pictures_meet_at_whole_pixels_of_a_tile_in_the_gallery(built: Built, look: Open, tmp_path: Path) -> None:
    """Firefox smooths an edge between two pixels, and left bright lines where pictures of the slide meet in a tile."""
    page = write_page(tmp_path / "page.html", built, [drawn_table(Lattice())] * 2, {"slide-a": grey_picture()})
    one = look(page)
    one.page.evaluate(
        """() => {
            window.places = [];
            const {drawImage} = CanvasRenderingContext2D.prototype;
            CanvasRenderingContext2D.prototype.drawImage = function (image, ...place) {
                if (this.canvas.matches(".tile-picture")) window.places.push(place);
                drawImage.call(this, image, ...place);
            };
        }"""
    )
    one.page.keyboard.press("ArrowRight")
    one.ready()
    one.until("window.places.length > 18")
    places = np.array(one.page.evaluate("window.places"))
    np.testing.assert_array_equal(places, np.round(places))


def test_panning_moves_the_slide_and_the_heat(plain: tuple[Look, ScoreTable]) -> None:
    one, _ = plain
    before, heat = one.state()["placement"], one.heat()
    box = one.page.locator(".pane").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    one.page.mouse.move(x, y)
    one.page.mouse.down()
    one.page.mouse.move(x + 90, y + 60, steps=5)
    one.page.mouse.up()
    one.still()
    after = one.state()["placement"]
    assert after["x0"] < before["x0"]
    assert after["y0"] < before["y0"]
    assert not np.array_equal(one.heat(), heat)


def test_a_threshold_hides_what_is_below_it_and_nothing_else(plain: tuple[Look, ScoreTable]) -> None:
    one, table = plain
    one.page.get_by_role("slider", name="Threshold").fill("50")
    values, heat = shown(table, one.state()["score"]).values, one.heat()
    for tile in np.flatnonzero(~np.isnan(values)):
        size = abs(float(values[tile])) / RANGE
        alpha = int(pixel(one, heat, *center(table, int(tile)))[3])
        assert abs(alpha - round(255 * 0.5 * min(1.0, max(0.0, (size - 0.5) / 0.5)))) <= 1


@pytest.mark.parametrize("threshold", [0, 40])
def test_contours_run_along_the_tiles_within_which_a_share_of_the_range_is_reached(
    plain: tuple[Look, ScoreTable], threshold: int
) -> None:
    one, table = plain
    one.page.get_by_role("slider", name="Threshold").fill(str(threshold))
    one.page.get_by_role("button", name="Contours").click()
    assert one.state()["style"] == "contours"
    share = threshold / 100
    lines = [at for at in (share + (1 - share) * k / 4 for k in range(4)) if at > 0]
    value = (shown(table, one.state()["score"]).values / np.float32(RANGE)).reshape(Lattice().rows, Lattice().columns)
    size = np.nan_to_num(np.minimum(np.abs(value), 1))
    levels = np.pad((np.sign(np.nan_to_num(value)) * (size[..., None] >= lines).sum(axis=-1)).astype(int), 1)
    heat, tried = one.heat(), {True: 0, False: 0}
    for tile, (row, column) in enumerate(np.ndindex(value.shape)):
        own = levels[row + 1, column + 1]
        if own == 0:
            continue
        assert pixel(one, heat, *center(table, tile))[3] == 0, "the middle of a tile shows the slide"
        for down, right in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            other = levels[row + 1 + down, column + 1 + right]
            x0, y0 = center(table, tile)
            x, y = one.place(x0 + right * table.size0 / 2, y0 + down * table.size0 / 2)
            found = heat[int(y - down), int(x - right)]
            edge = other < own if own > 0 else other > own
            tried[bool(edge)] += 1
            assert found[3] == (255 if edge else 0)
            if edge:
                np.testing.assert_allclose(found[:3], ORANGE if own > 0 else BLUE, atol=1)
    assert min(tried.values()) > 10
    said = one.page.locator(".legend").inner_text()
    assert f"Lines around tiles from |score| {lines[0] * RANGE:.3g}" in said
    x, y = (round(number) for number in one.place(*center(table, 30)))
    assert heat[y - 6 : y + 6, x - 6 : x + 6, 3].min() > 0, "what is not scored stays hatched"


def test_contours_of_a_score_without_a_sign_have_the_color_of_where_they_lie(plain: tuple[Look, ScoreTable]) -> None:
    one, _ = plain
    one.page.get_by_role("combobox", name="Score").select_option("attention")
    one.page.keyboard.press("c")
    heat = one.heat()
    lines = heat[heat[..., 3] == 255][:, :3]
    # viridis of matplotlib at a quarter, a half and three quarters.
    wanted = np.array([(59, 82, 139), (33, 145, 140), (94, 201, 98)])
    found = np.unique(lines, axis=0)
    assert len(found) == 3
    assert all(np.abs(wanted - color).max(axis=1).min() <= 3 for color in found.astype(int))


def test_another_class_shows_other_colors(plain: tuple[Look, ScoreTable]) -> None:
    one, table = plain
    other = next(name for name in table.task.outputs if name != table.predicted)
    before = one.heat()
    one.page.locator(".controls").get_by_role("button", name=other, exact=True).click()
    assert one.state()["score"] == f"contribution:{other}"
    assert not np.array_equal(one.heat(), before)
    values = shown(table, f"contribution:{other}").values
    tile = int(np.nanargmax(values))
    np.testing.assert_allclose(pixel(one, one.heat(), *center(table, tile))[:3], ORANGE, atol=3)


def test_attention_is_never_called_evidence(plain: tuple[Look, ScoreTable]) -> None:
    one, table = plain
    one.page.get_by_role("combobox", name="Score").select_option("attention")
    assert "not evidence" in one.page.locator(".legend").inner_text()
    # viridis of matplotlib at the tile with the most attention, which is beyond the range.
    tile = int(np.nanargmax(table.score("attention")))
    np.testing.assert_allclose(pixel(one, one.heat(), *center(table, tile))[:3], (253, 231, 37), atol=3)


def test_the_gallery_flies_to_the_tile(plain: tuple[Look, ScoreTable]) -> None:
    one, table = plain
    values = shown(table, one.state()["score"]).values
    one.tab("Tiles")
    wanted = np.argsort(-np.nan_to_num(values, nan=-np.inf), kind="stable")[:3]
    for number, tile in enumerate(wanted.tolist()):
        one.page.locator(".tile").nth(number).click()
        one.still()
        state = one.state()
        assert state["tile"] == tile
        x, y = one.place(*center(table, tile))
        place = state["placement"]
        assert abs(x - place["width"] / 2) < 0.5
        assert abs(y - place["height"] / 2) < 0.5
        heat, slide = one.page.evaluate(
            "(([x, y]) => [wsimil.heatToViewer(x, y), wsimil.imageToViewer(x, y)])", center(table, tile)
        )
        assert np.abs(np.subtract(heat, slide)).max() < 0.01


def test_two_views_side_by_side_show_one_place(plain: tuple[Look, ScoreTable]) -> None:
    one, _ = plain
    one.page.get_by_role("button", name="Side by side").click()
    one.until("wsimil.state().besidePlacement !== null")
    for pane in (0, 1):
        box = one.page.locator(".pane").nth(pane).bounding_box()
        one.page.mouse.move(box["x"] + 100, box["y"] + 150)
        one.page.mouse.wheel(0, -360)
        one.page.mouse.down()
        one.page.mouse.move(box["x"] + 160, box["y"] + 190, steps=4)
        one.page.mouse.up()
        one.still()
        state = one.state()
        for name in ("x0", "y0", "scale"):
            assert state["besidePlacement"][name] == pytest.approx(state["placement"][name], rel=1e-9)
        for command in ("f", "+"):
            # Whichever was moved by hand, both follow what is said to the page.
            one.page.keyboard.press(command)
            one.still()
            state = one.state()
            for name in ("x0", "y0", "scale"):
                assert state["besidePlacement"][name] == pytest.approx(state["placement"][name], rel=1e-9, abs=1e-9)


def test_a_hostile_name_is_only_a_name(built: Built, look: Open, tmp_path: Path) -> None:
    table = drawn_table(Lattice(), slide_id=HOSTILE)
    one = look(write_page(tmp_path / "page.html", built, [table]))
    assert one.page.evaluate("window.hurt") is None
    assert one.page.locator("img[src=x]").count() == 0
    assert one.page.locator(".slide-id").text_content() == HOSTILE
    one.page.get_by_role("button", name="Screenshot").click()
    with one.page.expect_download() as download:
        one.page.get_by_role("button", name="Screenshot").click()
    assert "/" not in download.value.suggested_filename
    assert len(download.value.suggested_filename) <= 104


def test_a_slide_that_cannot_be_loaded_says_why_and_the_next_one_opens(
    built: Built, look: Open, tmp_path: Path
) -> None:
    table = drawn_table(Lattice())
    one = look(write_page(tmp_path / "page.html", built, ["broken", table]), wait=False)
    said = one.page.get_by_role("alert")
    said.wait_for()
    assert "broken could not be loaded" in said.inner_text()
    assert "its scores cannot be read" in said.inner_text()
    one.page.keyboard.press("ArrowRight")
    one.ready()
    assert one.state()["slideId"] == "slide-a"
    assert said.count() == 0


def test_a_slide_that_is_not_at_hand_has_its_map_on_neutral_ground(built: Built, look: Open, tmp_path: Path) -> None:
    one = look(write_page(tmp_path / "page.html", built, [drawn_table(Lattice())]))
    assert "The slide is not at hand: the slide was moved" in one.page.locator(".hint").inner_text()
    assert one.heat()[..., 3].any()
    ground = one.slide()
    assert len(np.unique(ground[ground[..., 3] > 0].reshape(-1, 4), axis=0)) == 1


def test_what_is_not_scored_can_be_hatched_all_over_the_slide(plain: tuple[Look, ScoreTable]) -> None:
    one, _ = plain
    x, y = one.place(3990, 3200)
    assert one.heat()[int(y), int(x), 3] == 0
    one.page.keyboard.press("u")
    assert one.heat()[int(y), int(x), 3] > 0


def test_ten_thousand_slides_are_a_short_list_of_elements(built: Built, look: Open, tmp_path: Path) -> None:
    table = drawn_table(Lattice(columns=3, rows=2))
    cases: list[ScoreTable | str] = [table, *(f"slide-{number:05d}" for number in range(9_999))]
    one = look(write_page(tmp_path / "page.html", built, cases))
    assert "10,000 slides" in one.page.locator(".case-count").inner_text()
    assert 5 < one.page.locator(".case").count() < 60
    one.page.get_by_label("Search slides").fill("slide-0999")
    assert "9 of 10,000" in one.page.locator(".case-count").inner_text()
    one.page.get_by_label("Search slides").fill("")
    one.page.locator(".case-scroll").evaluate("list => { list.scrollTop = list.scrollHeight }")
    one.page.get_by_text("slide-09998").wait_for()
    assert one.page.locator(".case").count() < 60


def test_the_list_tells_the_probability_of_the_level_that_was_said(built: Built, look: Open, tmp_path: Path) -> None:
    """The median of levels need not be the most probable: that one's percentage stood beside it."""
    levels = Ordinal(levels=("1", "2", "3"))
    names = ("attention", "contribution:above 1", "contribution:above 2")
    plain = drawn_table(Lattice())
    table = replace(
        plain,
        task=levels,
        values=np.array([0.45, 0.19, 0.36]),
        score_names=names,
        score_rules=dict.fromkeys(names, EXACT),
    )
    one = look(write_page(tmp_path / "page.html", built, [table]))
    assert one.page.locator(".case-predicted").inner_text() == "2"
    assert one.page.locator(".case-p").inner_text() == "19.0 %"


@pytest.mark.parametrize("width", [900, 1060, 1061, 1280])
def test_the_legend_hides_no_part_of_the_scale_bar(built: Built, look: Open, tmp_path: Path, width: int) -> None:
    """In half of a usual screen it lay over the end of it."""
    one = look(write_page(tmp_path / "page.html", built, [drawn_table(Lattice())]), size=(width, 700))
    for length_px in (100, 150):
        one.page.evaluate(f"document.querySelector('.scalebar-line').style.width = '{length_px}px'")
        bar, legend = (one.page.locator(kind).bounding_box() for kind in (".scalebar", "section.legend"))
        assert bar["x"] + bar["width"] <= legend["x"] or bar["y"] >= legend["y"] + legend["height"]
