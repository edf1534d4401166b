"""A page as headless Chromium has it once it is loaded."""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pytest


@dataclass
class Page(HTMLParser):
    """What the browser made of a file: its elements with their attributes, its title, its metrics, and what it complained of."""

    elements: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    title: str = ""
    metrics: list[tuple[str, str]] = field(default_factory=list)
    text: str = ""
    console: str = ""

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._open: list[str] = []
        self._metric: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = {name: value or "" for name, value in attrs}
        self.elements.append((tag, own))
        self._open.append(tag)
        if "data-metric" in own:
            self.metrics.append((own["data-metric"], ""))
            self._metric = tag

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass
        if tag == self._metric:
            self._metric = None

    def handle_data(self, data: str) -> None:
        if self._open[-1:] == ["title"] and "svg" not in self._open:
            self.title += data
        elif self._open[-1:] != ["style"]:
            self.text += data
        if self._metric:
            where, before = self.metrics[-1]
            self.metrics[-1] = (where, before + data)


def chromium() -> str:
    """The browser; a test is skipped where there is none."""
    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    if found is None:
        pytest.skip("needs chromium (apt-get install chromium), which is not here")
    return found


def cut_in_print(file: Path) -> list[str]:
    """Heads of the tables that are wider than a sheet of A4 within the page's margins."""
    pytest.importorskip("playwright.sync_api", reason="needs the Python package playwright")
    # In a thread of its own, for a browser that other tests keep open holds this one.
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(_cut_in_print, file, chromium()).result()


def _cut_in_print(file: Path, executable: str) -> list[str]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": round((210 - 2 * 14) / 25.4 * 96), "height": 1000}, offline=True)
        page.emulate_media(media="print")
        page.goto(file.as_uri())
        cut: list[str] = page.evaluate(
            """[...document.querySelectorAll(".scroll")].filter((box) => box.scrollWidth > box.clientWidth)
                .map((box) => box.querySelector("thead").innerText)"""
        )
        browser.close()
    return cut


def opened(file: Path, profile: Path) -> Page:
    """`file` in a browser that reaches no host."""
    done = subprocess.run(
        [
            chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={profile}", "--enable-logging=stderr", "--v=0", "--dump-dom", file.as_uri(),
        ],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    page = Page()
    page.feed(done.stdout.decode("utf-8"))
    page.console = "\n".join(line for line in done.stderr.decode("utf-8", "replace").splitlines() if "CONSOLE" in line)
    return page
