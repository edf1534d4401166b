"""The viewer's server: this machine alone, whoever knows the token alone, and no path ever taken from a URL.

A page of somebody else's can make a browser send requests here. So the Host must be this server's (a name that an attacker lets
point to 127.0.0.1 is not), an Origin must be this server's, what changes something needs an Origin and JSON, and there is
no CORS. What is asked for is a number in a fixed list.
"""

from __future__ import annotations

import json
import re
import secrets
import socket
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from wsimil.errors import OutputError, WsimilError
from wsimil.export.viewer.notes import Notes
from wsimil.export.viewer.page import SERVER_POLICY
from wsimil.provenance import Json
from wsimil.stages.listed import MadeAnewError
from wsimil.stages.viewing.desk import Desk, NotThereError
from wsimil.stages.viewing.notebook import ChangedElsewhereError

HOST = "127.0.0.1"
MOST_BODY = 4 * 2**20
_IDLE_S = 60
_DRAINED_S, _PART = 5.0, 2**16
_HEADERS = {
    "Content-Security-Policy": SERVER_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_FRESH, _KEPT = "no-store", "private, max-age=3600"
_NUMBER = "(0|[1-9][0-9]{0,8})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What goes back: a body of one type, to be kept by the browser or not; `tag` stands for what the body tells of."""

    body: bytes
    kind: str
    keep: str = _FRESH
    status: HTTPStatus = HTTPStatus.OK
    tag: str = ""


class ViewServer(ThreadingHTTPServer):
    """Listens on 127.0.0.1; port 0 takes a free one. Raises OutputError where the port is taken.

    What cannot be read is told to `report` in full, and to the page without a path.
    """

    daemon_threads = True

    def __init__(self, desk: Desk, *, port: int = 0, report: Callable[[str], None]) -> None:
        self.desk, self.report = desk, report
        self.token = secrets.token_urlsafe(24)
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise OutputError(
                f"port {port} of {HOST} cannot be listened on: {error.strerror or error}; give another one with --port, or none"
            ) from error

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self.server_address[1])

    @property
    def base(self) -> str:
        """The path under which everything lies."""
        return f"/{self.token}/"

    @property
    def url(self) -> str:
        """Where a browser finds the page."""
        return f"http://{HOST}:{self.port}{self.base}"

    def hosts(self) -> tuple[str, ...]:
        """The names by which this server may be called."""
        return f"{HOST}:{self.port}", f"localhost:{self.port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that hangs up is no error; nothing is printed, for it might hold the token."""


class _RefusedError(Exception):
    """A request that is not answered, with the status that says so."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


class _HungUpError(Exception):
    """A browser that went away before it had said all; nobody waits for an answer."""


class _Handler(BaseHTTPRequestHandler):
    server: ViewServer
    protocol_version = "HTTP/1.1"
    server_version = "wsimil"
    sys_version = ""
    timeout = _IDLE_S

    def do_GET(self) -> None:
        """A page, numbers or pixels."""
        self._answer(lambda: _get(self.server.desk, self.server.base, self._place()))

    def do_POST(self) -> None:
        """Notes, or a what-if."""
        self._answer(lambda: _post(self.server.desk, self._place(), self._json(), self._seen()))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base's name
        """Nothing: the token stands in every line."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base says of requests that are none, without an echo of them."""
        self.close_connection = True
        self._send(_fault(HTTPStatus(code), HTTPStatus(code).phrase))

    def _answer(self, reply: Callable[[], Reply]) -> None:
        try:
            found = reply()
        except _HungUpError:
            self.close_connection = True
            return
        except _RefusedError as error:
            self.close_connection = True  # a body may still be on its way
            self._send(_fault(error.status, str(error)))
            self._drain()
            return
        except NotThereError as error:
            found = _fault(HTTPStatus.NOT_FOUND, str(error))
        except ValueError as error:
            found = _fault(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        except ChangedElsewhereError as error:
            found = _fault(HTTPStatus.PRECONDITION_FAILED, str(error))
        except MadeAnewError as error:
            found = _fault(HTTPStatus.CONFLICT, str(error))
        except WsimilError as error:
            self.server.report(str(error))
            found = _fault(HTTPStatus.CONFLICT, "this cannot be read or written; the terminal of wsimil view says why")
        except Exception as error:  # noqa: BLE001 - one request never ends the server
            self.server.report("".join(traceback.format_exception(error)))
            found = _fault(HTTPStatus.INTERNAL_SERVER_ERROR, f"unexpected {type(error).__name__}; please report it")
        self._send(found)

    def _place(self) -> str:
        """What is asked for, below the token. Raises _RefusedError for whoever may not ask."""
        if self.headers.get("Host", "") not in self.server.hosts():
            raise _RefusedError(HTTPStatus.FORBIDDEN, "this server answers to its own name alone")
        origin = self.headers.get("Origin")
        wanted = [f"http://{host}" for host in self.server.hosts()]
        if (origin is None and self.command != "GET") or (origin is not None and origin not in wanted):
            raise _RefusedError(HTTPStatus.FORBIDDEN, "this server answers to its own page alone")
        _, _, rest = self.path.partition("/")
        token, slash, place = rest.partition("/")
        same = secrets.compare_digest(token.encode("utf-8"), self.server.token.encode("ascii"))
        if not (self.path.startswith("/") and slash and same):
            raise _RefusedError(HTTPStatus.NOT_FOUND, "not found")
        return place

    def _json(self) -> Json:
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise _RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "wanted application/json")
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch("[0-9]{1,20}", length) or "Transfer-Encoding" in self.headers:
            raise _RefusedError(HTTPStatus.LENGTH_REQUIRED, "wanted a Content-Length")
        if int(length) > MOST_BODY:
            raise _RefusedError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"{int(length)} bytes are too many at once, wanted at most {MOST_BODY};"
                " keep fewer places and what-ifs on a slide",
            )
        try:
            body = self.rfile.read(int(length))
        except OSError as error:
            raise _HungUpError from error
        try:
            tree: Json = json.loads(body.decode("utf-8"))
        except (ValueError, RecursionError):
            raise _RefusedError(HTTPStatus.BAD_REQUEST, "the body is not JSON") from None
        return tree

    def _drain(self) -> None:
        """Read on what a browser still sends, for some seconds: one that cannot end its request may never look at the answer."""
        end = time.monotonic() + _DRAINED_S
        try:
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(_DRAINED_S)
            while time.monotonic() < end and self.connection.recv(_PART):
                pass
        except OSError:
            pass  # it went away

    def _seen(self) -> str | None:
        """The tag of what the page has seen and means to change, None where it does not say."""
        given = self.headers.get("If-Match")
        return None if given is None else given.strip().strip('"')

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        headers = {**_HEADERS, "Content-Type": reply.kind, "Cache-Control": reply.keep}
        if reply.tag:
            headers["ETag"] = f'"{reply.tag}"'
        for name, value in {**headers, "Content-Length": str(len(reply.body))}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(reply.body)


_Get = Callable[..., Reply]


def _get(desk: Desk, base: str, place: str) -> Reply:
    if place == "":
        return Reply(body=desk.page(base).encode("utf-8"), kind="text/html; charset=utf-8")
    if place == "static/viewer.js":
        return Reply(body=desk.built.script.encode("utf-8"), kind="text/javascript; charset=utf-8")
    if place == "static/viewer.css":
        return Reply(body=desk.built.style.encode("utf-8"), kind="text/css; charset=utf-8")
    if place == "static/LICENSES.txt":
        return Reply(body=desk.built.licenses.encode("utf-8"), kind="text/plain; charset=utf-8")
    if place == "index.json":
        return _tree(desk.index())
    routes: Mapping[str, _Get] = {
        rf"cases/{_NUMBER}\.json": lambda index: _tree(desk.case(index)),
        rf"cases/{_NUMBER}/notes": lambda index: _notes(desk.notes(index)),
        rf"cases/{_NUMBER}/tiles/{_NUMBER}/{_NUMBER}_{_NUMBER}\.jpg": lambda *at: _picture(desk.tile(*at)),
        rf"cases/{_NUMBER}/crops/{_NUMBER}\.jpg": lambda *at: _picture(desk.crop(*at)),
    }
    return _routed(routes, place)


def _post(desk: Desk, place: str, tree: Json, seen: str | None) -> Reply:
    routes: Mapping[str, _Get] = {
        rf"cases/{_NUMBER}/notes": lambda index: _saved(*desk.save_notes(index, tree, seen=seen)),
        rf"cases/{_NUMBER}/what-if": lambda index: _tree(desk.what_if(index, tree)),
    }
    return _routed(routes, place)


def _routed(routes: Mapping[str, _Get], place: str) -> Reply:
    for pattern, answer in routes.items():
        found = re.fullmatch(pattern, place)
        if found:
            return answer(*(int(group) for group in found.groups()))
    raise NotThereError("not found")


def _tree(tree: Mapping[str, Json]) -> Reply:
    text = json.dumps(tree, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=dict)
    return Reply(body=text.encode("utf-8"), kind="application/json; charset=utf-8")


def _notes(notes: Notes) -> Reply:
    return replace(_tree(notes.to_json()), tag=notes.stamp)


def _saved(notes: Notes, saved: str) -> Reply:
    return replace(_tree({"saved": saved}), tag=notes.stamp)


def _picture(jpeg: bytes) -> Reply:
    return Reply(body=jpeg, kind="image/jpeg", keep=_KEPT)


def _fault(status: HTTPStatus, text: str) -> Reply:
    body = json.dumps({"error": text}, ensure_ascii=False).encode("utf-8", "replace")
    return Reply(body=body, kind="application/json; charset=utf-8", status=status)
