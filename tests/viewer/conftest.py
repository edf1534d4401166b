"""A small study made once, servers of it, and a client that says whatever it is told to."""

from __future__ import annotations

import http.client
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.viewer.made_study import MadeStudy, make_study
from wsimil.export.viewer.built import Built
from wsimil.stages.view import ViewOptions, open_viewer
from wsimil.stages.viewing.server import ViewServer

BUILT = Built(script="'use strict';", style="body { margin: 0 }", licenses="OpenSeadragon")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> object:
        return json.loads(self.body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Speaks to a server; what it `heard` from it by `report` is kept."""

    server: ViewServer
    heard: list[str] = field(default_factory=list)

    def get(self, place: str, **headers: str) -> Answered:
        """What lies at `place` below the token."""
        return self.ask("GET", self.server.base + place, headers={"Host": self.host, **_dashed(headers)})

    def post(self, place: str, tree: object, **headers: str) -> Answered:
        given = {"Host": self.host, "Origin": f"http://{self.host}", "Content-Type": "application/json"}
        body = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
        return self.ask("POST", self.server.base + place, headers=given | _dashed(headers), body=body)

    def ask(self, method: str, path: str, *, headers: dict[str, str], body: bytes | None = None) -> Answered:
        """Exactly these headers, whatever they are; an empty one is left out."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=30)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            sized = {"Content-Length": str(len(body))} if body is not None else {}
            for name, value in (sized | headers).items():
                if value:
                    connection.putheader(name, value)
            connection.endheaders(body)
            reply = connection.getresponse()
            return Answered(status=reply.status, headers=dict(reply.getheaders()), body=reply.read())
        finally:
            connection.close()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server.port}"


def _dashed(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


Serve = Callable[..., Client]


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> MadeStudy:
    """Four slides of about 2000 px, features, a model, predictions. Tests leave it as it is."""
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture
def predictions(study: MadeStudy, tmp_path: Path) -> Path:
    """A copy of the predictions, to write notes into."""
    return Path(shutil.copytree(study.predictions, tmp_path / "predictions"))


@pytest.fixture
def serve() -> Iterator[Serve]:
    """A function that serves a folder of predictions, with `ViewOptions` by name, until the test ends; `built` is the page."""
    running: list[tuple[ViewServer, threading.Thread]] = []

    def start(predictions: Path, *, built: Built = BUILT, **options: object) -> Client:
        heard: list[str] = []
        server = open_viewer(
            predictions,
            options=ViewOptions(**options),  # type: ignore[arg-type]  # by name
            report=heard.append,
            built=built,
        )
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        running.append((server, thread))
        return Client(server=server, heard=heard)

    yield start
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()
        server.desk.pictures.close()
