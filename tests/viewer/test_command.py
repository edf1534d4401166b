"""The commands as a person types them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.viewer.made_study import MadeStudy
from wsimil.errors import ConfigError
from wsimil.export.viewer.built import read_built
from wsimil.stages.view import _shown


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "wsimil", *map(str, words)]


@pytest.fixture(autouse=True)
def page() -> None:
    try:
        read_built()
    except ConfigError as error:
        pytest.skip(str(error))


def test_view_prints_the_address_and_the_tunnel_and_ends_well_by_ctrl_c(study: MadeStudy, ctrl_c: None) -> None:
    with subprocess.Popen(
        command("view", study.predictions, "--slides", study.slides, "--no-browser"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as running:  # fmt: skip
        lines = [running.stdout.readline() for _ in range(5)]
        said = "".join(lines)
        url = re.search(r"http://127\.0\.0\.1:(\d+)/[\w-]{32}/", said)
        assert f"ssh -N -L {url[1]}:127.0.0.1:{url[1]} " in said
        with urllib.request.urlopen(url[0], timeout=30) as answered:
            assert b"wsimil-data" in answered.read()
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=30)
    assert running.returncode == 0
    assert errors == ""


def test_a_wrong_folder_is_a_usage_error(study: MadeStudy) -> None:
    done = subprocess.run(command("view", study.slides, "--no-browser"), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "wsimil predict" in done.stderr


def test_export_html_says_where_the_page_is(study: MadeStudy, tmp_path: Path) -> None:
    words = command(
        "export", "html", study.predictions, "-o", tmp_path / "page.html", "--single-file", "--only", "s1", "--json"
    )
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert (said["slides"], said["pictures"]) == (1, 0)
    assert said["size_bytes"] == (tmp_path / "page.html").stat().st_size
    assert Path(said["page"]) == tmp_path / "page.html"


def test_a_browser_is_given_a_file_that_its_owner_alone_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The token must not stand among a browser's arguments, which everybody on a machine sees."""
    opened: list[str] = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr("webbrowser.open", opened.append)
    url = "http://127.0.0.1:1/secret/"
    with _shown(url):
        path = Path(opened[0].removeprefix("file://"))
        assert "secret" not in opened[0]
        assert url in path.read_text()
        assert path.stat().st_mode & 0o077 == 0
    assert not path.exists()
