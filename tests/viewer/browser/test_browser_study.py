"""The viewer of a study that was extracted and predicted: served, and exported as files."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from tests.viewer.browser.conftest import Look, Open
from tests.viewer.made_study import MadeStudy, make_run
from wsimil.export.scores import read_scores
from wsimil.export.viewer.built import Built
from wsimil.slides import open_slide
from wsimil.stages.export_html import HtmlOptions, export_html
from wsimil.stages.predict import predict
from wsimil.stages.predict_options import PredictOptions
from wsimil.stages.view import ViewOptions, open_viewer
from wsimil.stages.viewing.server import ViewServer

Serving = Callable[..., ViewServer]


@pytest.fixture
def served(built: Built, study: MadeStudy) -> Iterator[Serving]:
    """A function that serves predictions with the page as it was built; the server before it ends."""
    running: list[tuple[ViewServer, threading.Thread]] = []

    def stop() -> None:
        for server, thread in running:
            server.shutdown()
            thread.join()
            server.server_close()
            server.desk.pictures.close()
        running.clear()

    def start(predictions: Path, **options: object) -> ViewServer:
        stop()
        given = ViewOptions(slides=study.slides, features=study.features, **options)  # type: ignore[arg-type]
        server = open_viewer(predictions, options=given, report=lambda _: None, built=built)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        running.append((server, thread))
        return server

    yield start
    stop()


def test_a_served_study_is_shown_and_asks_only_its_server(study: MadeStudy, served: Serving, look: Open) -> None:
    server = served(study.predictions)
    one = look(server.url)
    one.until("wsimil.complete()")
    assert one.state()["slideId"] == "s0"
    assert all(url.startswith(server.url) or url.startswith("data:") for url in one.asked)
    assert any("/tiles/" in url for url in one.asked)
    pixels = one.slide()
    assert np.ptp(pixels[pixels[..., 3] == 255][:, :3].astype(int), axis=0).min() > 30
    for name in ("Tiles", "What if", "Notes", "Overlay"):
        one.tab(name)
    crop = one.page.locator("img.tile-picture").first
    one.tab("Tiles")
    one.until("document.querySelector('img.tile-picture').naturalWidth > 0")
    assert crop.evaluate("image => image.naturalWidth") > 0


def test_notes_survive_a_restart_of_the_server(predictions: Path, served: Serving, look: Open) -> None:
    one = look(served(predictions).url)
    page = one.page
    one.tab("Notes")
    page.get_by_role("button", name="Disagree").click()
    page.get_by_label("Note on this slide").fill("stroma <b>only</b>")
    page.get_by_role("button", name="Pin", exact=True).click()
    page.mouse.click(*one.screen(700, 500))
    page.get_by_label("Text of Pin 1").fill("here")
    page.get_by_text("Saved.").wait_for()
    again = look(served(predictions).url)
    notes = again.state()["notes"]
    assert (notes["verdict"], notes["text"]) == ("disagree", "stroma <b>only</b>")
    assert [(pin["kind"], pin["text"]) for pin in notes["pins"]] == [("point", "here")]
    assert np.abs(np.subtract(notes["pins"][0]["xy0"][0], (700, 500))).max() <= 1 / one.state()["placement"]["scale"]
    again.tab("Notes")
    assert again.page.get_by_label("Note on this slide").input_value() == "stroma <b>only</b>"
    assert again.page.get_by_role("button", name="Disagree").get_attribute("aria-pressed") == "true"
    saved = json.loads((predictions / "notes" / "s0.geojson").read_text(encoding="utf-8"))
    assert len(saved["features"]) == 2


def test_notes_that_were_changed_in_another_tab_are_put_together_and_nothing_is_lost(
    predictions: Path, served: Serving, look: Open
) -> None:
    url = served(predictions).url
    first, second = look(url), look(url, complains=True)
    for one in (first, second):
        one.tab("Notes")
    first.page.get_by_label("Note on this slide").fill("mitoses")
    first.page.get_by_role("button", name="Pin", exact=True).click()
    first.page.mouse.click(*first.screen(700, 500))
    first.page.get_by_label("Text of Pin 1").fill("here")
    first.page.get_by_text("Saved.").wait_for()
    second.page.get_by_role("button", name="Disagree").click()
    second.page.get_by_label("Note on this slide").fill("necrosis")
    second.page.get_by_text("Not saved: they were changed elsewhere").wait_for()
    assert second.page.get_by_label("Note on this slide").input_value() == "necrosis"
    saved = predictions / "notes" / "s0.geojson"
    assert json.loads(saved.read_text(encoding="utf-8"))["wsimil"]["notes"]["text"] == "mitoses"
    second.page.get_by_role("button", name="Show these, with mine").click()
    second.page.get_by_text("Saved.").wait_for()
    assert second.page.get_by_label("Note on this slide").input_value() == "mitoses\nnecrosis"
    notes = json.loads(saved.read_text(encoding="utf-8"))["wsimil"]["notes"]
    assert (notes["verdict"], notes["text"]) == ("disagree", "mitoses\nnecrosis")
    assert [pin["text"] for pin in notes["pins"]] == ["here"]


def test_notes_that_cannot_be_saved_say_so(predictions: Path, served: Serving, look: Open) -> None:
    one = look(served(predictions).url, complains=True)
    one.tab("Notes")
    one.page.context.set_offline(True)
    one.page.get_by_role("button", name="Unsure").click()
    one.page.get_by_text("Not saved: the server does not answer").wait_for()
    one.page.context.set_offline(False)
    one.page.get_by_role("button", name="Try again").click()
    one.page.get_by_text("Saved.").wait_for()
    assert (predictions / "notes" / "s0.geojson").is_file()


def test_notes_of_a_slide_that_was_left_are_not_lost(predictions: Path, served: Serving, look: Open) -> None:
    one = look(served(predictions).url, complains=True)
    one.tab("Notes")
    one.page.get_by_label("Note on this slide").fill("left behind")
    one.page.context.set_offline(True)
    one.page.get_by_role("listbox").press("ArrowDown")
    one.page.get_by_text("The notes on s0 were not saved yet").wait_for()
    one.page.context.set_offline(False)
    one.page.get_by_role("listbox").press("ArrowUp")
    one.ready()
    assert one.state()["notes"]["text"] == "left behind"
    one.page.get_by_text("Saved.").wait_for()
    assert "left behind" in (predictions / "notes" / "s0.geojson").read_text(encoding="utf-8")


def test_a_what_if_in_the_page_is_what_the_server_answers(study: MadeStudy, served: Serving, look: Open) -> None:
    server = served(study.predictions)
    one = look(server.url)
    table = read_scores(study.predictions / "scores" / "s0.parquet")
    one.tab("What if")
    one.page.get_by_label("How many tiles").fill(str(len(table) // 3))
    one.page.get_by_role("button", name="most against").click()
    state = one.state()
    answered = server.desk.what_if(0, {"without": state["without"]})
    # The page has float32 parts and shares, as the table has; both sum them in float64.
    np.testing.assert_allclose(state["withoutValues"], answered["values"], rtol=1e-9)
    one.page.get_by_role("button", name="Keep with the notes").click()
    assert one.state()["notes"]["pins"][0]["without"] == sorted(state["without"])


def test_a_what_if_of_another_method_is_asked_of_the_server(
    study: MadeStudy, served: Serving, look: Open, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", study.features, method="pooling", config={"pool": "max"})
    predict(run, study.features, tmp_path / "predictions", options=PredictOptions(device="cpu"))
    server = served(tmp_path / "predictions", run=run)
    one = look(server.url)
    one.tab("What if")
    one.page.get_by_label("How many tiles").fill("9")
    one.page.get_by_role("button", name="most for").click()
    one.page.get_by_text("The model was run again without these tiles.").wait_for()
    state = one.state()
    assert len(state["without"]) == 9
    assert state["withoutValues"] == server.desk.what_if(0, {"without": sorted(state["without"])})["values"]
    assert state["withoutValues"] != server.desk.case(0)["values"]


@pytest.fixture
def hosted(tmp_path: Path) -> Iterator[str]:
    """The address under which a plain server offers the files in `tmp_path`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Silent, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


class _Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


@pytest.mark.parametrize("kind", ["one file", "a folder", "a folder on a server"])
def test_an_export_works_from_a_file_without_a_network(
    study: MadeStudy, built: Built, look: Open, hosted: str, tmp_path: Path, kind: str
) -> None:
    single_file = kind == "one file"
    out = tmp_path / ("page.html" if single_file else "page")
    options = HtmlOptions(slides=study.slides, features=study.features, single_file=single_file)
    export_html(study.predictions, out, options=options, built=built)
    page = out if single_file else out / "index.html"
    one = look(f"{hosted}/page/index.html" if kind == "a folder on a server" else page.as_uri())
    one.until("wsimil.complete()")
    assert one.heat().any()
    assert all(url.startswith(("file:", "data:", "blob:", hosted)) for url in one.asked)
    one.tab("Tiles")
    one.page.locator(".tile").first.click()
    one.still()
    one.until("wsimil.complete()")
    _hold_a_screenshot_against_its_slide(one, study.slides / "s0.tiff")
    one.page.keyboard.press("ArrowRight")
    one.ready()
    assert one.state()["slideId"] == "s1"
    one.until("wsimil.complete()")
    _hold_a_screenshot_against_its_slide(one, study.slides / "s1.tiff")


def test_pictures_that_cannot_be_read_stay_blank_and_are_told(
    study: MadeStudy, built: Built, look: Open, tmp_path: Path
) -> None:
    export_html(study.predictions, tmp_path / "page", options=HtmlOptions(slides=study.slides), built=built)
    folder = tmp_path / "page" / "pictures"
    for path in (folder / "0").rglob("*.js"):
        path.unlink()
    for path in (folder / "1").rglob("*.js"):
        path.write_text("'a picture that was not copied whole'")
    one = look((tmp_path / "page" / "index.html").as_uri(), complains=True)
    said = one.page.get_by_text("could not be read; those parts stay blank")
    said.wait_for()
    said.wait_for(state="hidden")
    one.page.keyboard.press("ArrowRight")
    one.ready()
    said.wait_for()
    assert one.heat().any()


def _hold_a_screenshot_against_its_slide(one: Look, path: Path) -> None:
    # What is said above the view takes as many lines as it needs: the view begins where its layers are drawn.
    one.page.evaluate(
        """() => {
            const own = CanvasRenderingContext2D.prototype, draw = own.drawImage;
            own.drawImage = function (...at) {
                if (!this.canvas.isConnected && at.length === 5 && at[2] >= 72) window.shotTop = at[2];
                return draw.apply(this, at);
            };
        }"""
    )
    _, with_overlay = one.screenshot()
    head_px = one.page.evaluate("window.shotTop")
    one.page.keyboard.press("o")
    name, picture = one.screenshot()
    one.page.keyboard.press("o")
    assert name == f"{path.stem}.png"
    place = one.state()["placement"]
    high = round(place["height"])
    (head, view, foot), overlaid = np.split(picture, [head_px, head_px + high]), with_overlay[head_px : head_px + high]
    assert (head < 100).all(axis=-1).any(), "a line about the case"
    assert (foot[:, -200:] < 100).all(axis=-1).any(), "a scale bar"
    warmth = with_overlay[head_px + high :][:60, :340, 0] - with_overlay[head_px + high :][:60, :340, 2]
    assert warmth.min() < -50 < 50 < warmth.max(), "a legend, from blue to orange"
    with open_slide(path) as slide:
        wide0, high0 = slide.info.size0_px
        pixels = slide.read_region((0, 0), (wide0, high0), slide.info.mpp).astype(np.int64)
    # Level-0 px under the middles of the view's px, where the slide lies.
    x0, y0 = (
        place[f"{axis}0"] + (np.arange(n) + 0.5) / place["scale"]
        for axis, n in zip("xy", view.shape[1::-1], strict=True)
    )
    x, y = (np.flatnonzero((at >= 0) & (at < most)) for at, most in ((x0, wide0), (y0, high0)))
    seen, there = view[np.ix_(y, x)], pixels[np.ix_(y0[y].astype(int), x0[x].astype(int))]
    assert np.corrcoef(seen.ravel(), there.ravel())[0, 1] > 0.9, "the slide"
    assert (overlaid[np.ix_(y, x)] != seen).any(), "an overlay"
