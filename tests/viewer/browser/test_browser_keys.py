"""The viewer can be used with a keyboard alone, and pictures of it hold what they should."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.viewer.browser.conftest import Look, Open
from tests.viewer.browser.made_page import Lattice, drawn_table, grey_picture, write_page
from wsimil.export.viewer.built import Built


@pytest.fixture(scope="module")
def page(built: Built, tmp_path_factory: pytest.TempPathFactory) -> str:
    tables = [drawn_table(Lattice(), slide_id="slide-a"), drawn_table(Lattice(), slide_id="slide-b", seed=1)]
    pictures = {"slide-a": grey_picture(), "slide-b": grey_picture()}
    return write_page(tmp_path_factory.mktemp("page") / "page.html", built, tables, pictures)


@pytest.fixture
def two(page: str, look: Open) -> Look:
    """Two slides."""
    return look(page)


def test_a_walk_through_with_keys(two: Look) -> None:
    press = two.page.keyboard.press
    state = two.state
    assert state()["case"] == 0
    press("ArrowRight")
    two.ready()
    assert state()["case"] == 1
    press("ArrowLeft")
    two.ready()
    assert state()["case"] == 0
    press("ArrowUp")
    assert state()["opacity"] == pytest.approx(0.55)
    press("ArrowDown")
    press("ArrowDown")
    assert state()["opacity"] == pytest.approx(0.45)
    press("1")
    assert state()["score"] == "contribution:normal"
    press("2")
    assert state()["score"] == "contribution:tumor"
    press("a")
    assert state()["score"] == "attention"
    press("a")
    press("o")
    assert state()["visible"] is False
    press("o")
    press("c")
    assert state()["style"] == "contours"
    press("c")
    assert state()["style"] == "tiles"
    press("s")
    assert state()["sideBySide"] is True
    press("s")
    press("+")
    two.still()
    closer = state()["placement"]["scale"]
    press("-")
    two.still()
    assert state()["placement"]["scale"] < closer
    press("t")
    press("ArrowRight")
    press("ArrowRight")
    assert state()["threshold"] == pytest.approx(0.02)
    assert state()["case"] == 0, "arrows belong to the slider while it has the focus"
    press("g")
    press("Tab")
    press("Enter")
    two.still()
    assert state()["tile"] is not None
    press("n")
    two.page.keyboard.type("seen 1")
    assert state()["notes"]["text"] == "seen 1", "letters are text while one writes"
    press("Escape")
    press("w")
    assert state()["tool"] == "lasso"
    press("Escape")
    assert state()["tool"] == "pan"
    press("?")
    assert two.page.get_by_role("dialog").is_visible()
    press("Escape")
    assert not two.page.get_by_role("dialog").is_visible()


def test_holding_space_hides_the_overlay(two: Look) -> None:
    two.page.keyboard.down(" ")
    assert two.state()["hidden"] is True
    assert not two.heat().any()
    two.page.keyboard.up(" ")
    assert two.state()["hidden"] is False
    assert two.heat().any()


def test_every_control_is_reached_with_tab_and_has_a_name(two: Look) -> None:
    names = []
    for _ in range(60):
        two.page.keyboard.press("Tab")
        name = two.page.evaluate(
            """() => {
                const one = document.activeElement;
                if (one === document.body) return null;
                const pane = one.closest(".pane");
                const seen = pane ? getComputedStyle(pane, "::after").borderTopStyle : getComputedStyle(one).outlineStyle;
                return [one.ariaLabel || one.labels?.[0]?.innerText || one.innerText || one.title, seen];
            }"""
        )
        if name is None:
            break
        names.append(name)
    assert len(names) > 15
    assert all(name for name, _ in names), names
    assert all(seen != "none" for _, seen in names), names


def test_the_list_is_walked_with_arrows(two: Look) -> None:
    two.page.keyboard.press("l")
    two.page.keyboard.press("ArrowDown")
    two.ready()
    assert two.state()["case"] == 1
    listed = two.page.get_by_role("listbox")
    assert listed.get_attribute("aria-activedescendant") == "case-1"
    assert "slide-b" in (two.page.locator("#case-1").get_attribute("aria-label") or "")


def test_a_click_counts_though_the_list_is_drawn_anew_between_press_and_release(two: Look) -> None:
    box = two.page.locator("#case-1").bounding_box()
    assert box is not None
    two.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    two.page.mouse.down()
    two.page.locator(".case-scroll").evaluate("list => list.dispatchEvent(new Event('scroll'))")
    two.page.mouse.up()
    two.ready()
    assert two.state()["case"] == 1
    selected = {at: two.page.locator(f"#case-{at}").get_attribute("aria-selected") for at in (0, 1)}
    assert selected == {0: "false", 1: "true"}


def test_a_screenshot_holds_the_view_its_legend_and_its_scale_bar(two: Look) -> None:
    name, picture = two.screenshot()
    assert name == "slide-a.png"
    place = two.state()["placement"]
    width = picture.shape[1]
    assert width == round(place["width"])
    head, foot = picture[:72], picture[72 + round(place["height"]) :]
    view = picture[72 : 72 + round(place["height"])]
    assert (head < 100).all(axis=-1).any(), "a line about the case"
    assert (foot[:, -200:] < 100).all(axis=-1).any(), "a scale bar"
    warmth = foot[:60, :340, 0] - foot[:60, :340, 2]
    assert warmth.min() < -50 < 50 < warmth.max(), "a legend, from blue to orange"
    assert (np.ptp(view, axis=-1) > 30).any(), "an overlay"
    assert (view == 230).all(axis=-1).any(), "a slide"


@pytest.mark.parametrize("hatch", ["not scored", "left out"])
def test_a_screenshot_says_what_its_hatches_mean(built: Built, look: Open, tmp_path: Path, hatch: str) -> None:
    """The line about them lay below its edge."""
    table = drawn_table(Lattice())
    if hatch == "not scored":
        scores = table.scores.copy()
        scores[3, 1:] = np.nan
        table = replace(table, scores=scores)
    one = look(write_page(tmp_path / "page.html", built, [table], {table.slide_id: grey_picture()}))
    if hatch == "left out":
        one.tab("What if")
        one.page.get_by_role("button", name="most for").click()
    _, picture = one.screenshot()
    below_ends = picture[72 + round(one.state()["placement"]["height"]) + 64 :, 14:400]
    inked = (below_ends < 150).all(axis=-1).any(axis=1)
    assert not inked[-4:].any(), "nothing is cut"
    lines = ["Range", "No threshold", "0 =", "Rule", "Effective tiles", hatch]
    assert inked[: 15 * len(lines)].reshape(len(lines), 15).any(axis=1).all()


def test_a_screenshot_of_a_narrow_view_cuts_no_words(built: Built, look: Open, tmp_path: Path) -> None:
    """The answer without the tiles that were left out stands last, and was cut off first."""
    page = write_page(tmp_path / "page.html", built, [drawn_table(Lattice())])
    one = look(page, size=(900, 700))
    one.page.evaluate(
        """() => {
            const own = CanvasRenderingContext2D.prototype, draw = own.fillText;
            window.drawn = [];
            own.fillText = function (words, ...at) { window.drawn.push(words); return draw.call(this, words, ...at); };
        }"""
    )
    one.tab("What if")
    one.page.get_by_role("button", name="most for").click()
    answer = one.page.locator(".result-answer").inner_text()
    _, picture = one.screenshot()
    words = one.page.evaluate("window.drawn")
    told = " ".join(words)
    assert answer in told
    assert "weights 0123456789ab" in told
    assert not [part for part in words if part.endswith("…")]
    assert picture.shape[0] > 72 + round(one.state()["placement"]["height"]) + 71 + 6 * 15
