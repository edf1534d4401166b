"""Chromium without a window, pages that write down what they complain of, and what they ask for."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from wsimil.errors import ConfigError
from wsimil.export.viewer.built import Built, read_built

sync_api = pytest.importorskip("playwright.sync_api", reason="needs the Python package playwright")


WAIT_MS = 20_000


@dataclass(slots=True, kw_only=True)
class Look:
    """A page that is open; `complaints` are its errors and warnings, `asked` the URLs that it wanted."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def state(self) -> dict[str, Any]:
        """What the viewer says that it shows."""
        return dict(self.page.evaluate("wsimil.state()"))

    def until(self, condition: str) -> None:
        """Waits until JavaScript holds; the page's policy forbids the driver's own way of evaluating texts."""
        self.page.evaluate(
            f"""async () => {{
                const end = performance.now() + {WAIT_MS};
                while (!({condition})) {{
                    if (performance.now() > end) throw new Error("waited in vain");
                    await new Promise(requestAnimationFrame);
                }}
            }}"""
        )

    def ready(self) -> None:
        """Waits until a slide is shown and stands still."""
        self.until("window.wsimil && wsimil.ready()")
        self.still()

    def still(self) -> None:
        """Waits until nothing moves from one frame to the next three."""
        self.page.evaluate(
            """async () => {
                let [before, same] = ["", 0];
                while (same < 3) {
                    await new Promise(requestAnimationFrame);
                    const now = JSON.stringify(wsimil.state().placement);
                    same = now === before ? same + 1 : 0;
                    before = now;
                }
            }"""
        )

    def heat(self) -> NDArray[np.uint8]:
        """Pixels of the heat on the screen, RGBA [h, w, 4]."""
        return self._canvas(".pane:last-child .heat")

    def slide(self) -> NDArray[np.uint8]:
        """Pixels of the slide under it, RGBA."""
        return self._canvas(
            ".pane:last-child .openseadragon-canvas > canvas, .pane:last-child .openseadragon-canvas > div > canvas"
        )

    def screenshot(self) -> tuple[str, NDArray[np.int64]]:
        """What the key for it saves: the name of the file, and its pixels, RGB [h, w, 3]."""
        with self.page.expect_download() as download:
            self.page.keyboard.press("p")
        saved = Path(download.value.path()).read_bytes()
        return download.value.suggested_filename, np.asarray(Image.open(io.BytesIO(saved)).convert("RGB"), np.int64)

    def place(self, x0: float, y0: float) -> tuple[float, float]:
        """Where OpenSeadragon has a point of the slide, CSS px of the view."""
        x, y = self.page.evaluate(f"wsimil.imageToViewer({x0}, {y0})")
        return x, y

    def screen(self, x0: float, y0: float) -> tuple[float, float]:
        """The same in px of the window."""
        x, y = self.place(x0, y0)
        box = self.page.locator(".pane:last-child").bounding_box()
        return box["x"] + x, box["y"] + y

    def tab(self, name: str) -> None:
        """Opens one of the panel's tabs."""
        self.page.get_by_role("tab", name=name, exact=True).click()

    def _canvas(self, selector: str) -> NDArray[np.uint8]:
        text = self.page.evaluate(f"document.querySelector({selector!r}).toDataURL('image/png').split(',')[1]")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGBA"))


Open = Callable[..., Look]


@pytest.fixture(scope="session")
def built() -> Built:
    """The page as it was built; without it these tests have nothing to look at."""
    try:
        return read_built()
    except ConfigError as error:
        pytest.skip(f"the viewer was not built: {error}")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Debian's Chromium, or whichever is there."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("needs Chromium, such as Debian's package chromium")
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def look(chromium: Any, tmp_path: Path) -> Iterator[Open]:
    """A function that opens a URL; at the end a page must not have complained, but where the test says so."""
    contexts: list[tuple[Any, Look, bool]] = []

    def start(url: str, *, size: tuple[int, int] = (1280, 800), complains: bool = False, wait: bool = True) -> Look:
        context = chromium.new_context(
            viewport={"width": size[0], "height": size[1]}, offline=url.startswith("file:"), accept_downloads=True
        )
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        one = Look(page=page)
        page.on("console", lambda said: one.complaints.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: one.complaints.append(str(error)))
        page.on("request", lambda request: one.asked.append(request.url))
        contexts.append((context, one, complains))
        page.goto(url)
        if wait:
            one.ready()
        return one

    yield start
    for context, _, _ in contexts:
        context.close()
    for _, one, complains in contexts:
        assert complains or not one.complaints, one.complaints
