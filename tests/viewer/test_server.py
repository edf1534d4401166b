"""Who is answered: this machine, by this server's name, from this server's page, with the token, about numbers in a list."""

from __future__ import annotations

import base64
import json
import socket
import struct
import threading
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.viewer.conftest import Client, Serve
from tests.viewer.made_study import MadeStudy, make_run
from wsimil.stages.predict import PredictOptions, predict

NOTES = {"verdict": "agree", "text": "", "pins": []}


@pytest.fixture
def client(serve: Serve, predictions: Path, study: MadeStudy) -> Client:
    return serve(predictions, slides=study.slides)


def test_page_index_slide_and_pixels_are_served_below_the_token(client: Client) -> None:
    page = client.get("")
    assert page.status == 200
    assert page.headers["Content-Type"].startswith("text/html")
    assert b'class="wsimil-data"' in page.body
    assert [case["slide_id"] for case in client.get("index.json").json()["cases"]] == ["s0", "s1", "s2", "s3"]
    assert client.get("cases/0.json").json()["slide_id"] == "s0"
    pyramid = client.get("cases/0.json").json()["pyramid"]
    tile = client.get(pyramid["tiles"]["url"].format(level=pyramid["max_level"], x=1, y=0))
    assert tile.status == 200
    assert tile.body[:3] == b"\xff\xd8\xff"
    assert client.get("cases/0/crops/5.jpg").body[:3] == b"\xff\xd8\xff"
    assert client.get("static/viewer.js").headers["Content-Type"].startswith("text/javascript")
    assert client.get("static/viewer.css").headers["Content-Type"].startswith("text/css")


def test_it_listens_on_this_machine_alone(client: Client) -> None:
    assert client.server.server_address[0] == "127.0.0.1"


def test_two_servers_have_two_tokens_of_192_bits(serve: Serve, study: MadeStudy) -> None:
    first, second = (serve(study.predictions).server.token for _ in range(2))
    assert first != second
    assert len(base64.urlsafe_b64decode(first)) == 24


@pytest.mark.parametrize("place", ["", "index.json", "cases/0.json", "static/viewer.js", "cases/0/notes"])
def test_nothing_is_answered_without_the_token(client: Client, place: str) -> None:
    wrong = client.server.token[:-1] + ("A" if client.server.token[-1] != "A" else "B")
    for path in (f"/{place}", f"/{wrong}/{place}", f"//{place}", f"/{client.server.token.lower()}x/{place}", "/"):
        assert client.ask("GET", path, headers={"Host": client.host}).status == 404, path


def test_the_token_without_a_slash_is_not_the_page(client: Client) -> None:
    assert client.ask("GET", f"/{client.server.token}", headers={"Host": client.host}).status == 404


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "evil.example:{port}", "0.0.0.0:{port}", ""]
)
def test_another_host_is_refused(client: Client, host: str) -> None:
    named = host.format(port=client.server.port)
    for place in ("", "index.json", "cases/0.json", "static/viewer.js"):
        assert client.get(place, Host=named).status == 403
    assert client.post("cases/0/notes", NOTES, Host=named).status == 403


def test_localhost_is_this_server_too(client: Client) -> None:
    name = f"localhost:{client.server.port}"
    assert client.get("index.json", Host=name).status == 200
    assert client.post("cases/0/notes", NOTES, Host=name, Origin=f"http://{name}").status == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "https://127.0.0.1:{port}"])
def test_another_origin_is_refused(client: Client, origin: str) -> None:
    named = origin.format(port=client.server.port)
    assert client.get("cases/0.json", Origin=named).status == 403
    assert client.post("cases/0/notes", NOTES, Origin=named).status == 403
    assert client.post("cases/0/what-if", {"without": [1]}, Origin=named).status == 403


def test_a_post_without_an_origin_is_refused(client: Client) -> None:
    assert client.post("cases/0/notes", NOTES, Origin="").status == 403
    assert client.post("cases/0/what-if", {"without": [1]}, Origin="").status == 403


@pytest.mark.parametrize(
    "place",
    [
        "../predictions.csv", "cases/../../predictions.csv", "static/../../../../etc/passwd", "static/viewer.py",
        "static/%2e%2e/built.py", "static/..%2fbuilt.py", "%2e%2e/index.json", "cases/0/tiles/../../0.json",
        "/etc/passwd", "//etc/passwd", "cases//etc/passwd", "file:///etc/passwd", "..\\..\\etc\\passwd",
        "cases/0/notes/../../../x", "scores/s0.parquet", "cases/s0.json", "cases/0.json/", "cases/0.json?x=1", "cases/0.json%00",
        "static", "static/", "cases/", "index.json/..",
    ],
)  # fmt: skip
def test_no_path_leads_anywhere(client: Client, place: str) -> None:
    answered = client.get(place)
    assert answered.status == 404
    assert answered.json() == {"error": "not found"}


def test_an_absolute_address_is_not_followed(client: Client) -> None:
    answered = client.ask("GET", f"http://{client.host}{client.server.base}index.json", headers={"Host": client.host})
    assert answered.status == 404


@pytest.mark.parametrize(
    "place",
    [
        "cases/4.json", "cases/-1.json", "cases/00.json", "cases/1e0.json", "cases/999999999.json",
        "cases/99999999999999999999.json", "cases/4/notes", "cases/0/tiles/99/0_0.jpg", "cases/0/tiles/0/0_0.jpg",
        "cases/0/tiles/11/99_0.jpg", "cases/0/tiles/11/-1_0.jpg", "cases/0/crops/99999.jpg", "cases/4/crops/0.jpg",
        "cases/4/tiles/11/0_0.jpg",
    ],
)  # fmt: skip
def test_a_number_that_is_none_is_not_found(client: Client, place: str) -> None:
    assert client.get(place).status == 404
    assert client.heard == []


def test_a_huge_body_is_refused_before_it_is_read(client: Client) -> None:
    answered = client.post("cases/0/notes", b"{}", Content_Length=str(2**40))
    assert answered.status == 413
    answered = client.post("cases/0/notes", b"{}", Content_Length=str(4 * 2**20 + 1))
    assert answered.status == 413


def test_a_browser_that_sends_too_much_hears_why(client: Client) -> None:
    """It looks at the answer once it has sent all; a connection that is cut meanwhile takes the answer with it."""
    answered = client.post("cases/0/notes", b" " * (24 * 2**20))
    assert answered.status == 413
    assert "keep fewer places" in str(answered.json())


def test_a_browser_that_hangs_up_is_no_fault_of_ours(client: Client) -> None:
    head = f"POST {client.server.base}cases/0/notes HTTP/1.1\r\nHost: {client.host}\r\nOrigin: http://{client.host}\r\n"
    head += "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
    answered = threading.Event()
    shut = client.server.shutdown_request

    def closed(request: object) -> None:
        shut(request)
        answered.set()

    client.server.shutdown_request = closed  # type: ignore[method-assign]  # to know when it is over
    with socket.create_connection(("127.0.0.1", client.server.port), timeout=30) as raw:
        raw.sendall(head.encode())
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing it resets it
    assert answered.wait(30)
    assert client.heard == []


def test_a_body_of_unknown_length_is_refused(client: Client) -> None:
    assert client.post("cases/0/notes", b"{}", Content_Length="").status == 411
    assert client.post("cases/0/notes", b"{}", Content_Length="-1").status == 411
    assert client.post("cases/0/notes", b"2\r\n{}\r\n0\r\n\r\n", Transfer_Encoding="chunked").status == 411


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_only_json_is_taken(client: Client, kind: str) -> None:
    assert client.post("cases/0/notes", NOTES, Content_Type=kind).status == 415


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"verdict": NaN}'])
def test_what_is_no_json_is_refused(client: Client, body: bytes) -> None:
    assert client.post("cases/0/notes", body).status in (400, 422)
    assert client.get("cases/0/notes").json() == {"verdict": None, "text": "", "pins": []}


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE"])
def test_other_methods_are_refused(client: Client, method: str) -> None:
    answered = client.ask(method, client.server.base, headers={"Host": client.host, "Origin": "https://evil.example"})
    assert answered.status == 501
    assert not [name for name in answered.headers if name.lower().startswith("access-control")]


def test_posts_go_to_two_places_alone(client: Client) -> None:
    for place in ("", "index.json", "cases/0.json", "cases/0/tiles/11/0_0.jpg", "static/viewer.js"):
        assert client.post(place, NOTES).status == 404


def test_every_answer_forbids_what_a_page_could_do_to_it(client: Client) -> None:
    answers = [client.get(""), client.get("index.json"), client.get("nothing"), client.get("", Host="evil.example")]
    for answered in answers:
        policy = answered.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "*" not in policy
        assert answered.headers["X-Content-Type-Options"] == "nosniff"
        assert answered.headers["X-Frame-Options"] == "DENY"
        assert answered.headers["Referrer-Policy"] == "no-referrer"
        assert answered.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert answered.headers["Server"].strip() == "wsimil"
        assert not [name for name in answered.headers if name.lower().startswith("access-control")]


def test_a_request_that_is_none_is_not_echoed(client: Client) -> None:
    with socket.create_connection(("127.0.0.1", client.server.port), timeout=30) as raw:
        raw.sendall(b"<script>alert(1)</script>\r\n\r\n")
        answered = b""
        while part := raw.recv(4096):
            answered += part
    assert b"alert" not in answered


def test_a_port_that_is_taken_is_an_error_with_a_remedy(client: Client, serve: Serve, study: MadeStudy) -> None:
    with pytest.raises(Exception, match="give another one with --port"):
        serve(study.predictions, port=client.server.port)


def test_hostile_names_are_inert_in_the_page(serve: Serve, predictions: Path) -> None:
    hostile = [
        "</script><script>alert(1)</script>",
        'a"onload="x',
        "two\nlines",
        "../../etc/passwd",
        "<!--",
        "x" * 300,
        "\u2028",
    ]
    write_ids(predictions, hostile)
    client = serve(predictions)
    page = client.get("").body.decode()
    _, _, rest = page.partition('<script type="application/json" class="wsimil-data">')
    data, _, after = rest.partition("</script>")
    assert "<" not in data
    assert ">" not in data
    assert "\u2028" not in data
    assert after.count("<script") == 1  # viewer.js
    found = json.loads(data)["index"]["cases"]
    assert [case["slide_id"] for case in found] == hostile
    assert all(not case["scored"] for case in found)
    for index in range(len(hostile)):
        assert client.get(f"cases/{index}.json").status == 404
        assert client.post(f"cases/{index}/notes", NOTES).status == 404
    assert not (predictions / "notes").exists()


def test_scores_of_another_prediction_than_the_listed_one_are_not_shown(
    serve: Serve, study: MadeStudy, tmp_path: Path
) -> None:
    predictions, options = tmp_path / "again", PredictOptions(device="cpu")
    predict(study.run, study.features, predictions, options=options)
    client = serve(predictions, slides=study.slides)
    shown = client.get("cases/0.json").json()
    other = make_run(tmp_path / "other", study.features, sharp=7.0)
    predict(other, study.features, predictions, options=options)
    # What was shown before stays what it is; nothing of the new answers comes beside the list of the old ones.
    assert client.get("cases/0.json").json() == shown
    for place in ("cases/1.json", "cases/1/notes", "cases/1/crops/0.jpg"):
        refused = client.get(place)
        assert refused.status == 409
        assert "predicted anew" in str(refused.json())
        assert str(tmp_path) not in str(refused.json())
    again = serve(predictions, slides=study.slides).get("cases/1.json")
    assert again.status == 200


def test_scores_of_another_slide_with_the_same_answer_are_not_shown(predictions: Path, serve: Serve) -> None:
    scores, names = predictions / "scores", ("s0", "s1")
    mine, other = (pq.read_table(scores / f"{name}.parquet") for name in names)
    header = json.loads(other.schema.metadata[b"wsimil"])
    header["values"] = json.loads(mine.schema.metadata[b"wsimil"])["values"]
    pq.write_table(other.replace_schema_metadata({b"wsimil": json.dumps(header)}), scores / "s0.parquet")
    assert serve(predictions).get("cases/0.json").status == 409


def write_ids(predictions: Path, slide_ids: list[str]) -> None:
    """Answers for slides of these names."""
    import numpy as np

    from wsimil.evaluation.table import Row, write_table
    from wsimil.targets import Classification

    rows = [
        Row(slide_id=slide_id, values=np.array([0.5, 0.5]), label="<b>", patient_id=slide_id[::-1])
        for slide_id in slide_ids
    ]
    write_table(predictions, rows, task=Classification(classes=("normal", "tumor")))
