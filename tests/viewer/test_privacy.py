"""Of a slide's file the viewer shows its pixels and its geometry: no label, no macro image, no property, no path."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openslide
import pytest
import simplejpeg

from tests.viewer.conftest import BUILT, Client, Serve
from tests.viewer.made_study import make_run
from wsimil.evaluation.table import Row, write_table
from wsimil.extraction.config import ExtractConfig
from wsimil.extraction.sources import list_sources
from wsimil.stages.export_html import HtmlOptions, export_html
from wsimil.stages.extract import extract
from wsimil.stages.predict import predict
from wsimil.stages.predict_options import PredictOptions
from wsimil.targets import Classification

PATIENT = "MRS-JANE-DOE-1957"


class Planted:
    """A real slide with a label and a macro image, in a folder with a patient's name, predicted under another id."""

    def __init__(self, folder: Path, shared_dir: Path) -> None:
        self.archive = folder / PATIENT
        self.archive.mkdir()
        slide = self.archive / f"{PATIENT}.svs"
        slide.write_bytes((shared_dir / "data" / "slides" / "CMU-1-Small-Region.svs").read_bytes())
        with openslide.OpenSlide(slide) as handle:
            assert {"label", "macro"} <= set(handle.associated_images)
            properties = dict(handle.properties)
        geometry = re.compile(r"[0-9.]*|true|false|aperio|#?[0-9a-fA-F]{1,8}")
        said = {value.strip() for value in properties.values()}
        said |= {part.strip() for value in said for part in re.split(r"[|\r\n=]", value)}
        self.words = {PATIENT, str(self.archive), str(folder)}
        self.words |= {value for value in said if len(value) > 4 and not geometry.fullmatch(value)}
        assert any(properties["aperio.User"] in word for word in self.words) or len(properties["aperio.User"]) <= 4
        assert properties["aperio.Filename"] in self.words
        self.manifest = folder / "slides.csv"
        self.manifest.write_text(f"path,slide_id\n{slide},case-1\n")
        self.features = folder / "features"
        config = ExtractConfig.model_validate({"device": "cpu", "precision": "fp32", "readers": 1})
        assert not extract(config, list_sources(self.manifest), self.features).failures
        self.run = make_run(folder / "run", self.features)
        self.predictions = folder / "predictions"
        predict(self.run, self.features, self.predictions, options=PredictOptions(device="cpu"))

    def found_in(self, content: bytes) -> list[str]:
        """Planted words in bytes, as they stand, as JSON or base64 writes them, in UTF-16, or over parts of a page's data."""
        content = re.sub(rb'</script>\s*<script type="application/json" class="wsimil-data">', b"", content)
        inlined = b"".join(base64.b64decode(found) for found in re.findall(rb"base64,([A-Za-z0-9+/=]+)", content))
        text = content + inlined
        return [
            word
            for word in self.words
            if any(form in text for form in (word.encode(), word.encode("utf-16-le"), json.dumps(word)[1:-1].encode()))
        ]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory, shared_dir: Path) -> Planted:
    return Planted(tmp_path_factory.mktemp("planted"), shared_dir)


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of associated images that were asked for."""
    asked: list[str] = []

    def images(handle: openslide.OpenSlide) -> dict[str, object]:
        asked.append("associated images")
        return {}

    monkeypatch.setattr(openslide.OpenSlide, "associated_images", property(images))
    return asked


def everything(client: Client) -> Iterator[bytes]:
    """All that the server gives of its first slide, with headers."""
    places = [
        "",
        "index.json",
        "cases/0.json",
        "cases/0/notes",
        "cases/1.json",
        "static/LICENSES.txt",
        "cases/0/crops/0.jpg",
    ]
    tell = client.get("cases/0.json").json()["pyramid"]
    for level in range(tell["min_level"], tell["max_level"] + 1):
        places += [tell["tiles"]["url"].format(level=level, x=x, y=0) for x in range(3)]
    for place in places:
        answered = client.get(place)
        yield repr(answered.headers).encode() + answered.body
    yield client.post("cases/0/notes", {"verdict": "agree", "text": "t", "pins": []}).body
    yield client.post("cases/0/what-if", {"without": [0]}).body
    yield client.post("cases/0/what-if", {"without": "x"}).body


def test_no_answer_of_the_server_holds_what_was_planted(
    planted: Planted, untouched: list[str], serve: Serve, tmp_path: Path
) -> None:
    client = serve(
        planted.predictions,
        slides=planted.manifest,
        features=planted.features,
        run=planted.run,
        notes=tmp_path / "notes",
    )
    pictures = 0
    for content in everything(client):
        assert planted.found_in(content) == []
        pictures += b"\xff\xd8\xff" in content
    assert pictures > 5
    for path in (tmp_path / "notes").iterdir():
        assert planted.found_in(path.read_bytes()) == []
    assert untouched == []


@pytest.mark.parametrize("single_file", [False, True])
def test_no_exported_file_holds_what_was_planted(
    single_file: bool, planted: Planted, untouched: list[str], tmp_path: Path
) -> None:
    out = tmp_path / ("page.html" if single_file else "page")
    options = HtmlOptions(slides=planted.manifest, features=planted.features, single_file=single_file, top=3)
    summary = export_html(planted.predictions, out, options=options, built=BUILT)
    assert (summary.slides, summary.pictures) == (1, 1)
    files = [out] if single_file else [path for path in out.rglob("*") if path.is_file()]
    for path in files:
        assert planted.found_in(path.read_bytes()) == []
        assert planted.found_in(str(path.relative_to(tmp_path)).encode()) == []
    assert not [path for path in files if "properties" in path.name]
    assert untouched == []


def test_no_picture_is_of_the_label(planted: Planted, shared_dir: Path, serve: Serve) -> None:
    """The overview goes with the pyramid's px, and with those of the label and of the macro image it does not."""
    client = serve(planted.predictions, slides=planted.manifest)
    tell = client.get("cases/0.json").json()["pyramid"]
    overview = simplejpeg.decode_jpeg(client.get(tell["tiles"]["url"].format(level=tell["min_level"], x=0, y=0)).body)
    size = overview.shape[1::-1]
    with openslide.OpenSlide(shared_dir / "data" / "slides" / "CMU-1-Small-Region.svs") as handle:
        images = {name: handle.associated_images[name].convert("RGB") for name in ("label", "macro")}
        images["pyramid"] = handle.read_region((0, 0), 0, handle.dimensions).convert("RGB")
    alike = {
        name: np.corrcoef(np.asarray(image.resize(size)).ravel(), overview.ravel())[0, 1]
        for name, image in images.items()
    }
    assert alike["pyramid"] > 0.9
    assert max(alike["label"], alike["macro"]) < 0.5, alike


def test_a_reason_of_failure_that_names_a_path_is_in_no_answer(planted: Planted, serve: Serve, tmp_path: Path) -> None:
    predictions = tmp_path / "predictions"
    predictions.mkdir()
    (predictions / "predictions.json").write_bytes((planted.predictions / "predictions.json").read_bytes())
    row = Row(slide_id="case-1", status=f"failed: slide 'case-1': {planted.archive}/{PATIENT}.svs cannot be opened")
    write_table(predictions, [row], task=Classification(classes=("normal", "tumor")))
    client = serve(predictions)
    for place in ("", "index.json", "cases/0.json"):
        assert planted.found_in(client.get(place).body) == []
    summary = export_html(predictions, tmp_path / "page", options=HtmlOptions(), built=BUILT)
    assert planted.found_in(summary.page.read_bytes()) == []
