"""Makes the README's pictures of the viewer, from the slides of `wsimil demo`: docs/pictures/*.jpg.

    wsimil demo -o demo && python benchmarks/pictures.py demo

Serves the demo's predictions as `wsimil view` does and takes pictures of the page in headless Chromium. Needs playwright and
Chromium.
"""

from __future__ import annotations

import argparse
import io
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright
from viewer import chromium

from wsimil.stages.view import ViewOptions, open_viewer

WINDOW = {"width": 1280, "height": 800}
MOST_BYTES = 300_000


def main() -> None:
    arguments = _arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with _served(arguments.demo) as url, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport=WINDOW)
        page.goto(url)
        _ready(page)
        _open_surest_tumor(page)
        _take(page, arguments.out / "viewer.jpg")
        _lasso(page)
        _take(page, arguments.out / "what_if.jpg")
        page.get_by_role("button", name="Put all back").click()
        with page.expect_download() as download:
            page.get_by_role("button", name="Screenshot").click()
        _save(Image.open(download.value.path()), arguments.out / "overlay.jpg")
        browser.close()


def _open_surest_tumor(page: Page) -> None:
    """The slide with the highest probability of the last class."""
    order = page.get_by_label("Order")
    order.select_option(order.locator("option").last.get_attribute("value"))
    page.locator(".case").first.click()
    _ready(page)


def _lasso(page: Page) -> None:
    """Around what is orange, most of what speaks for the answer."""
    page.get_by_role("tab", name="What if").click()
    page.get_by_role("button", name="Lasso tiles").click()
    left, top, right, bottom = page.evaluate(
        """() => {
            const canvas = document.querySelector(".heat");
            const { width, height } = canvas;
            const data = canvas.getContext("2d").getImageData(0, 0, width, height).data;
            const box = [width, height, 0, 0];
            for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
                const at = 4 * (y * width + x);
                if (data[at + 3] < 60 || data[at] < data[at + 2]) continue;
                box[0] = Math.min(box[0], x);
                box[1] = Math.min(box[1], y);
                box[2] = Math.max(box[2], x);
                box[3] = Math.max(box[3], y);
            }
            const place = canvas.getBoundingClientRect();
            return [place.x + box[0], place.y + box[1], place.x + box[2], place.y + box[3]];
        }"""
    )
    x, y, wide, high = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
    turns = [2 * math.pi * step / 48 for step in range(49)]
    # A hand's circle, wide enough for the corners that count.
    points = [(x + 0.64 * wide * math.cos(t), y + 0.6 * high * math.sin(t)) for t in turns]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point)
    page.mouse.up()


def _ready(page: Page) -> None:
    page.locator(".scalebar-text", has_text="µm").wait_for()
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(1200)


def _take(page: Page, path: Path) -> None:
    _save(Image.open(io.BytesIO(page.screenshot())), path)


def _save(picture: Image.Image, path: Path) -> None:
    """As small as it must be and as good as it can be."""
    for quality in range(92, 40, -6):
        data = io.BytesIO()
        picture.convert("RGB").save(data, "JPEG", quality=quality, optimize=True)
        if data.tell() <= MOST_BYTES:
            break
    path.write_bytes(data.getvalue())
    print(f"{path}: {data.tell() // 1000} kB")


@contextmanager
def _served(demo: Path) -> Iterator[str]:
    options = ViewOptions(slides=demo / "slides", features=demo / "features", run=demo / "run")
    server = open_viewer(demo / "predictions", options=options, report=print)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.url
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
