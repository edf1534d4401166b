"""The viewer as files: whole, inert, and with the pixels and numbers of the study."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.viewer.conftest import BUILT, Serve
from tests.viewer.made_study import MadeStudy
from tests.viewer.test_server import write_ids
from wsimil.errors import ConfigError
from wsimil.export.scores import read_scores
from wsimil.export.shown import shown
from wsimil.export.viewer.built import Built, read_built
from wsimil.export.viewer.page import DATA_PART_CHARS, handing_over, static_page
from wsimil.slides import open_slide
from wsimil.stages.export_html import HtmlOptions, export_html, shown_tiles
from wsimil.stages.viewing.pictures import encode


def data_of(page: Path) -> dict[str, object]:
    return json.loads("".join(parts_of(page.read_text(encoding="utf-8"))))


def parts_of(page: str) -> list[str]:
    return re.findall('class="wsimil-data">(.*?)</script>', page, re.DOTALL)


@pytest.fixture(scope="module")
def folder(study: MadeStudy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("html") / "page"
    options = HtmlOptions(slides=study.slides, features=study.features, top=3)
    export_html(study.predictions, out, options=options, built=BUILT)
    return out


@pytest.fixture(scope="module")
def single(study: MadeStudy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("html") / "page.html"
    export_html(study.predictions, out, options=HtmlOptions(slides=study.slides, single_file=True, top=3), built=BUILT)
    return out


def test_a_folder_holds_the_same_slides_as_the_server(folder: Path, study: MadeStudy, serve: Serve) -> None:
    tree, client = (
        data_of(folder / "index.html"),
        serve(study.predictions, slides=study.slides, features=study.features),
    )
    assert tree["mode"] == "static"
    assert tree["index"] == client.get("index.json").json()
    for index in range(4):
        mine, theirs = tree["cases"][str(index)], client.get(f"cases/{index}.json").json()
        assert mine["tissue"] == theirs["tissue"]
        assert mine["tissue"]["type"] == "MultiPolygon"
        for part in ("pyramid", "crops"):
            mine.pop(part), theirs.pop(part)
        assert mine == theirs


def test_a_folders_tiles_are_the_readers_pixels_at_two_um(folder: Path, study: MadeStudy) -> None:
    tell = data_of(folder / "index.html")["cases"]["1"]["pyramid"]
    with open_slide(study.slides / "s1.tiff") as slide:
        assert tell["downsample"] * slide.info.mpp == 2
        assert (tell["width"], tell["height"]) == slide.info.size0_px
        step, level = tell["downsample"], tell["max_level"]
        size = -(-tell["width"] // step), -(-tell["height"] // step)
        assert max(size) > tell["tile_size"]
        path = folder / tell["tiles"]["url"].format(level=level, x=0, y=1)
        region = slide.read_region((0, 512 * step), (size[0], size[1] - 512), slide.info.mpp * step)
        assert path.read_text(encoding="ascii") == handing_over(encode(region))


def test_every_tile_that_the_page_may_ask_for_is_there(folder: Path) -> None:
    named = set()
    for case in data_of(folder / "index.html")["cases"].values():
        tell = case["pyramid"]
        full = int(np.ceil(np.log2(max(tell["width"], tell["height"]))))
        for level in range(tell["min_level"], tell["max_level"] + 1):
            span = tell["tile_size"] * 2 ** (full - level)
            columns, rows = (-(-tell[side] // span) for side in ("width", "height"))
            named |= {tell["tiles"]["url"].format(level=level, x=x, y=y) for x in range(columns) for y in range(rows)}
        named |= set(case["crops"]["tiles"].values())
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.parent != folder and path.is_file()}
    assert named == found


def test_top_and_bottom_tiles_come_in_full_resolution(folder: Path, single: Path, study: MadeStudy) -> None:
    for index in range(4):
        table = read_scores(study.predictions / "scores" / f"s{index}.parquet")
        contribution = table.score(table.main_score)
        wanted = {*np.argsort(contribution)[:3], *np.argsort(contribution)[-3:]}
        wanted |= {*np.argsort(table.score("attention"))[:3], *np.argsort(table.score("attention"))[-3:]}
        for page in (folder / "index.html", single):
            crops = data_of(page)["cases"][str(index)]["crops"]["tiles"]
            assert {int(tile) for tile in crops} == wanted
            tile, url = next(iter(crops.items()))
            jpeg = base64.b64decode(url.partition(",")[2]) if page == single else (folder / url).read_bytes()
            with open_slide(study.slides / f"s{index}.tiff") as slide:
                x, y = table.xy0[int(tile)].tolist()
                region = slide.read_region((x, y), (table.size0_px,) * 2, slide.info.mpp)
            assert jpeg == encode(region)


def test_a_single_file_holds_every_picture_and_names_no_other(single: Path) -> None:
    assert [path.name for path in single.parent.iterdir()] == ["page.html"]
    for case in data_of(single)["cases"].values():
        tell = case["pyramid"]
        assert set(tell["tiles"]) == {"data"}
        assert all(url.startswith("data:image/jpeg;base64,") for url in tell["tiles"]["data"].values())
        assert f"{tell['max_level']}/0_0" in tell["tiles"]["data"]
    text = single.read_text(encoding="utf-8")
    assert not re.search(r'(src|href)="(?!data:,)', text)
    assert "http" not in text.replace("http-equiv", "")


def test_data_lie_in_parts_for_webkit_stalls_over_a_large_one() -> None:
    cases = {"0": {"picture": "0123456789" * 100_000}}
    parts = parts_of(static_page({}, cases, BUILT, pictures=False))
    assert max(map(len, parts)) <= DATA_PART_CHARS
    assert json.loads("".join(parts))["cases"] == cases


@pytest.mark.parametrize("kind", ["folder", "single"])
def test_the_page_may_run_its_own_script_and_load_nothing_else(kind: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(kind)
    text = (path / "index.html" if kind == "folder" else path).read_text(encoding="utf-8")
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1])
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "connect-src" not in policy
    script = text.rpartition("<script>")[2].partition("</script>")[0]
    assert script == BUILT.script
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # Of scripts beside it a folder may run those that its own script asks for, and no other.
    asked = " 'strict-dynamic'" if kind == "folder" else ""
    assert f"script-src 'sha256-{digest}'{asked};" in policy
    style = text.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy
    assert "OpenSeadragon" in text  # its license


def test_hostile_names_are_inert_and_no_file_is_named_by_them(predictions: Path, tmp_path: Path) -> None:
    hostile = ["</script><script>alert(1)</script>", 'a"onload="x', "two\nlines", "../../etc/passwd", "<!--", "x" * 300]
    write_ids(predictions, hostile)
    out = tmp_path / "page"
    export_html(predictions, out, options=HtmlOptions(), built=BUILT)
    text = (out / "index.html").read_text(encoding="utf-8")
    assert text.count("<script") == 3
    assert text.count("</script>") == 3
    assert [case["slide_id"] for case in data_of(out / "index.html")["index"]["cases"]] == hostile
    assert sorted(path.name for path in out.iterdir()) == ["LICENSES.txt", "index.html"]
    assert data_of(out / "index.html")["cases"]["0"]["error"].startswith("there are no tile scores")


def test_scores_that_are_not_shown_are_told_with_the_reason_on_the_page_and_in_the_terminal(
    predictions: Path, tmp_path: Path
) -> None:
    scores, out = predictions / "scores", tmp_path / "page"
    shutil.copy(scores / "s2.parquet", scores / "s1.parquet")  # whose values are others
    (scores / "s3.parquet").write_bytes(b"PAR1")
    summary = export_html(predictions, out, options=HtmlOptions(), built=BUILT)
    cases = data_of(out / "index.html")["cases"]
    assert "another answer" in cases["1"]["error"]
    assert "cannot be read" in cases["3"]["error"]
    assert ["s1" in note for note in summary.notes if "another answer" in note] == [True]
    assert len([note for note in summary.notes if "s3.parquet" in note]) == 1


def test_chosen_slides_are_numbered_anew(study: MadeStudy, tmp_path: Path) -> None:
    out = tmp_path / "page"
    export_html(study.predictions, out, options=HtmlOptions(only=("s2", "s1")), built=BUILT)
    tree = data_of(out / "index.html")
    assert [(case["index"], case["slide_id"]) for case in tree["index"]["cases"]] == [(0, "s1"), (1, "s2")]
    assert [case["slide_id"] for case in tree["cases"].values()] == ["s1", "s2"]
    with pytest.raises(ConfigError, match="s9"):
        export_html(study.predictions, tmp_path / "other", options=HtmlOptions(only=("s9",)), built=BUILT)


def test_an_earlier_export_is_replaced_and_nothing_else_is(study: MadeStudy, tmp_path: Path) -> None:
    out = tmp_path / "page"
    export_html(study.predictions, out, options=HtmlOptions(slides=study.slides, only=("s2",)), built=BUILT)
    export_html(study.predictions, out, options=HtmlOptions(only=("s2",)), built=BUILT)
    assert sorted(path.name for path in out.iterdir()) == ["LICENSES.txt", "index.html"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.html").write_text("mine")
    with pytest.raises(ConfigError, match="something else"):
        export_html(study.predictions, tmp_path / "mine", options=HtmlOptions(), built=BUILT)
    with pytest.raises(ConfigError, match="something else"):
        export_html(
            study.predictions, tmp_path / "mine" / "index.html", options=HtmlOptions(single_file=True), built=BUILT
        )
    assert (tmp_path / "mine" / "index.html").read_text() == "mine"


def test_an_unscored_tile_is_never_at_an_end(study: MadeStudy) -> None:
    from dataclasses import replace

    table = read_scores(study.predictions / "scores" / "s0.parquet")
    scores = table.scores.copy()
    scores[4] = np.nan
    assert 4 not in shown_tiles(replace(table, scores=scores), top=len(table))
    assert len(shown_tiles(table, top=len(table))) == len(table)
    assert shown_tiles(table, top=0) == []


def test_the_tiles_in_full_are_those_that_the_page_ranks_first(study: MadeStudy) -> None:
    from dataclasses import replace

    table = read_scores(study.predictions / "scores" / "s0.parquet")
    n, names = len(table), tuple(f"single:{name}" for name in table.task.outputs)
    # Tile 0 has both the highest logits, and of the class against the others the lowest.
    single = np.stack([np.linspace(0, 1, n)] * 2, axis=1).astype(np.float32)
    main = names.index(f"single:{table.task.main_output(table.values)}")
    single[0, main], single[0, 1 - main] = 5, 9
    found = replace(table, score_names=names, scores=single)
    values = shown(found, names[main]).values
    assert shown_tiles(found, top=1) == sorted({int(values.argmin()), int(values.argmax())})


def test_of_tiles_with_equal_scores_the_first_are_in_full_as_the_page_lists_them(study: MadeStudy) -> None:
    from dataclasses import replace

    table = read_scores(study.predictions / "scores" / "s0.parquet")
    raw = np.zeros((len(table), 1), np.float32)
    raw[10:40] = 1
    rules = {"attention": "weights of the method"}
    found = replace(table, score_names=("attention",), score_rules=rules, scores=raw)
    assert shown_tiles(found, top=3) == [0, 1, 2, 10, 11, 12]


def test_a_script_that_would_end_itself_is_refused(study: MadeStudy, tmp_path: Path) -> None:
    broken = Built(script='x = "</script>"', style="", licenses="")
    with pytest.raises(ConfigError, match="end of a script"):
        export_html(study.predictions, tmp_path / "page", options=HtmlOptions(), built=broken)
    assert not (tmp_path / "page").exists()


def test_a_page_that_was_not_built_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Node\.js 20 .*pip install --force-reinstall"):
        read_built(tmp_path)
    (tmp_path / "not_built.txt").write_text("npm was not found\n")
    with pytest.raises(ConfigError, match="npm was not found"):
        read_built(tmp_path)
