"""How fluid the viewer is with a slide of 100 000 tiles: time from frame to frame while it is dragged, in headless Chromium.

    python benchmarks/viewer.py [--tiles 100000] [--json benchmarks/results/viewer.json]

A page of one file, with a drawn picture under the tiles. The mouse drags the slide back and forth at several magnifications; the
page writes down when frames came and how long the work of each took. Needs playwright and Chromium.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from wsimil.export.viewer.built import read_built
from wsimil.export.viewer.page import static_page
from wsimil.export.viewer.pyramid import Pyramid

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/viewer/browser"))
from made_page import Lattice, drawn_case, drawn_index, drawn_table  # what the tests draw

SIZE = {"width": 1600, "height": 1000}
SIDE = 448.0
DRAGS = 24
STEPS = 12

WATCH = """() => {
    window.frames_ms = [];
    window.work_ms = [];
    const step = () => {
        const begin = performance.now();
        // A task after this frame's callbacks and painting: the time until then is what the frame cost.
        const channel = new MessageChannel();
        channel.port1.onmessage = () => window.work_ms.push(performance.now() - begin);
        channel.port2.postMessage(0);
        if (window.last_ms) window.frames_ms.push(begin - window.last_ms);
        window.last_ms = begin;
        window.watching = requestAnimationFrame(step);
    };
    window.last_ms = 0;
    step();
}"""
STOP = "() => { cancelAnimationFrame(window.watching); return [window.frames_ms, window.work_ms]; }"


def main() -> None:
    arguments = _arguments()
    load = os.getloadavg()[0]
    columns = round(arguments.tiles**0.5)
    lattice = Lattice(size0=SIDE, stride0=arguments.overlap * SIDE, origin=(64, 64), columns=columns, rows=columns)
    side = round(64 + lattice.stride0 * columns + SIDE)
    table = drawn_table(lattice, size0_px=(side, side))
    case = drawn_case(0, table, None)
    pyramid = Pyramid(size0_px=(side, side)).without_largest(5)
    case["pyramid"] = pyramid.to_json({"data": _textures(pyramid)})
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        path = Path(folder) / "page.html"
        path.write_text(static_page(drawn_index([table]), {"0": case}, read_built(), pictures=False), encoding="utf-8")
        browser = driver.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE)
        begin = time.perf_counter()
        page.goto(path.as_uri())
        page.wait_for_function("window.wsimil && wsimil.ready()")
        opened = time.perf_counter() - begin
        found = [_measured(page, closer) for closer in (0, 10, 14, 20)]
        recolored = page.evaluate(
            """async () => {
                const slider = document.querySelector('input[aria-label=Threshold]');
                const times = [];
                for (let i = 1; i <= 20; i++) {
                    const begin = performance.now();
                    slider.value = String(i * 4);
                    slider.dispatchEvent(new Event('input', {bubbles: true}));
                    times.push(performance.now() - begin);
                    await new Promise(requestAnimationFrame);
                }
                return times;
            }"""
        )
        version = browser.version
        browser.close()
    result = {
        "tiles": len(table),
        "chromium": version,
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_before": round(load, 1),
        "window_px": [SIZE["width"], SIZE["height"]],
        "seconds_to_ready": round(opened, 2),
        "panning": found,
        "threshold_ms": _summary(recolored),
    }
    print(json.dumps(result, indent=2))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _measured(page: Page, closer: int) -> dict[str, Any]:
    """Drags the slide, `closer` steps of the wheel nearer than its whole."""
    page.keyboard.press("f")
    page.wait_for_timeout(800)
    box = page.locator(".pane").first.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    for _ in range(closer):
        page.mouse.wheel(0, -100)
        page.wait_for_timeout(60)
    page.wait_for_timeout(800)
    page.evaluate(WATCH)
    for drag in range(DRAGS):
        away = 220 if drag % 2 else -220
        page.mouse.move(x - away / 2, y - away / 3)
        page.mouse.down()
        page.mouse.move(x + away / 2, y + away / 3, steps=STEPS)
        page.mouse.up()
    frames, work = page.evaluate(STOP)
    scale = page.evaluate("wsimil.state().placement.scale")
    return {
        "css_px_per_tile": round(SIDE * scale, 1),
        "frames": len(frames),
        "frame_ms": _summary(frames),
        "work_ms": _summary(work),
    }


def _textures(pyramid: Pyramid) -> dict[str, str]:
    """A picture of its own for every tile of a pyramid."""
    rng = np.random.default_rng(0)
    found = {}
    for level, x, y in pyramid.all_tiles():
        width, height = pyramid.tile(level, x, y).size_px
        grain = np.kron(rng.integers(120, 220, (height // 8 + 1, width // 8 + 1, 3)), np.ones((8, 8, 1)))
        data = io.BytesIO()
        Image.fromarray(grain[:height, :width].astype(np.uint8)).save(data, "JPEG")
        found[f"{level}/{x}_{y}"] = f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
    return found


def _summary(values: list[float]) -> dict[str, float]:
    found = np.array(values)
    return {
        "median": round(float(np.median(found)), 2),
        "p95": round(float(np.percentile(found, 95)), 2),
        "max": round(float(found.max()), 2),
    }


def chromium() -> str:
    """Where Chromium is. Raises SystemExit."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        raise SystemExit("needs Chromium, such as Debian's package chromium")
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=100_000)
    parser.add_argument("--overlap", type=float, default=1.0, help="stride as a share of a tile's side")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
