"""The answer without some tiles is Python's, and what is kept of it can be read elsewhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import geojson
import numpy as np
import pytest
import shapely

from tests.viewer.browser.conftest import Look, Open
from tests.viewer.browser.made_page import RULE, Lattice, drawn_case, drawn_index, drawn_table, write_page
from wsimil.evaluation.calibration import Calibration
from wsimil.export.answers import AnswerRule
from wsimil.export.scores import ScoreTable
from wsimil.export.shown import shown
from wsimil.export.viewer.built import Built
from wsimil.export.viewer.notes import notes_csv, notes_geojson, parse_notes
from wsimil.export.viewer.page import static_page
from wsimil.export.viewer.payload import Cohort, case_json, index_json, packed, what_if_json
from wsimil.export.viewer.what_if import ClosedForm, Mix, closed_form
from wsimil.mil.facts import ModelFacts
from wsimil.targets import Classification, MultiLabel, Ordinal, Regression, Survival

LATTICE = Lattice()
MODEL = ModelFacts(
    method="abmil", config={}, in_dim=1, task=RULE.task, bag="slide", features=None, training={}, digest="d", version=""
)  # fmt: skip


@pytest.fixture(scope="module")
def page(built: Built, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ScoreTable]:
    table = drawn_table(LATTICE)
    return write_page(tmp_path_factory.mktemp("page") / "page.html", built, [table]), table


@pytest.fixture
def plain(page: tuple[str, ScoreTable], look: Open) -> tuple[Look, ScoreTable]:
    return look(page[0]), page[1]


def lasso(one: Look, corners: list[tuple[float, float]], *, adds: bool = False) -> None:
    """Draws around level-0 places, with Shift where it `adds`."""
    mouse = one.page.mouse
    if adds:
        one.page.keyboard.down("Shift")
    mouse.move(*one.screen(*corners[0]))
    mouse.down()
    for corner in [*corners[1:], corners[0]]:
        mouse.move(*one.screen(*corner), steps=4)
    mouse.up()
    if adds:
        one.page.keyboard.up("Shift")


def box(first: tuple[int, int], last: tuple[int, int]) -> list[tuple[float, float]]:
    """Around the centers of tiles from `first` to `last` (column, row) of the lattice."""
    left, top = (LATTICE.origin[axis] + LATTICE.stride0 * (first[axis] + 0.2) for axis in (0, 1))
    right, bottom = (LATTICE.origin[axis] + LATTICE.stride0 * (last[axis] + 0.8) for axis in (0, 1))
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def inside(first: tuple[int, int], last: tuple[int, int]) -> set[int]:
    return {
        row * LATTICE.columns + column
        for row in range(first[1], last[1] + 1)
        for column in range(first[0], last[0] + 1)
    }


def expected(table: ScoreTable, without: list[int]) -> np.ndarray:
    kept = np.ones(len(table), bool)
    kept[without] = False
    return RULE.values(closed_form(table, "single", RULE).logits(kept))


def test_a_lasso_leaves_out_its_tiles_and_the_answer_is_pythons(plain: tuple[Look, ScoreTable]) -> None:
    one, table = plain
    one.page.keyboard.press("w")
    lasso(one, box((2, 1), (5, 3)))
    state = one.state()
    assert set(state["without"]) == inside((2, 1), (5, 3))
    # Both are float64 over the same float32 scores; sums of 143 terms in another order differ by less.
    np.testing.assert_allclose(state["withoutValues"], expected(table, state["without"]), rtol=1e-12)
    lasso(one, box((8, 6), (9, 8)), adds=True)
    state = one.state()
    assert set(state["without"]) == inside((2, 1), (5, 3)) | inside((8, 6), (9, 8))
    np.testing.assert_allclose(state["withoutValues"], expected(table, state["without"]), rtol=1e-12)
    lasso(one, box((0, 0), (1, 0)))
    assert set(one.state()["without"]) == inside((0, 0), (1, 0))


THREE = ("a", "b", "c")
MOVED = Calibration(kind="bias_corrected", classes=3, fitted_on="val", rows=9, temperature=0.8, shifts=(0.6, -0.9, 0.3))
WARM = Calibration(kind="temperature", classes=3, fitted_on="val", rows=9, temperature=1.7)
CURVE = ((0.0, 0.0), (0.2, 0.1), (0.25, 0.3), (0.7, 0.8), (1.0, 1.0))
STEPS = Calibration(kind="isotonic", classes=3, fitted_on="val", rows=9, curves=(CURVE, CURVE[1:4], CURVE))
LABEL = Calibration(kind="temperature", classes=2, fitted_on="val", rows=9, temperature=0.6)
LABEL_STEPS = Calibration(kind="isotonic", classes=2, fitted_on="val", rows=9, curves=(CURVE,))
RULES = {
    "temperature": AnswerRule(task=Classification(classes=THREE), calibration=WARM),
    "bias-corrected": AnswerRule(task=Classification(classes=THREE), calibration=MOVED),
    "isotonic": AnswerRule(task=Classification(classes=THREE), calibration=STEPS),
    "several labels": AnswerRule(task=MultiLabel(labels=THREE)),
    "each label": AnswerRule(task=MultiLabel(labels=THREE), labels={"a": LABEL, "c": LABEL_STEPS}),
    "ordinal": AnswerRule(task=Ordinal(levels=("0", "1", "2", "3"))),
    "regression": AnswerRule(task=Regression(columns=THREE, mean=(1.0, -2.0, 0.5), scale=(2.0, 3.0, 0.1))),
    "hazard": AnswerRule(task=Survival(edges=(1.0, 2.5, 7.0), bins=3, horizons=(0.4, 2.5, 6.0))),
    "cox": AnswerRule(task=Survival(model="cox", horizons=(1.0, 2.0), edges=(3.0,), baseline=(0.1, 0.7))),
}


def test_every_way_to_answer_and_every_mix_of_heads_is_computed_as_python_does(
    built: Built, look: Open, tmp_path: Path
) -> None:
    """One slide for each; the list is of three classes throughout, for only the numbers count here."""
    rng = np.random.default_rng(5)
    table = drawn_table(LATTICE)
    mixes: dict[str, tuple[Mix, int]] = {"single": ("single", 1), "output": ("output", 3), "mean": ("mean", 4)}
    tries = [(name, "single") for name in RULES] + [("temperature", "output"), ("temperature", "mean")]
    forms, cases = [], {}
    for number, (name, mix) in enumerate(tries):
        outputs = RULES[name].task.outputs
        heads = mixes[mix][1]
        attention = rng.dirichlet(np.full(len(table), 0.3), size=heads).T.astype(np.float32)
        parts = (attention.mean(axis=1, keepdims=True) * rng.normal(size=(len(table), 3)) * 3).astype(np.float32)
        bias = rng.normal(size=3)
        forms.append(
            ClosedForm(
                mix=mixes[mix][0],
                attention=attention.astype(np.float64),
                parts=parts.astype(np.float64)[:, : len(outputs)],
                bias=bias[: len(outputs)],
            )
        )
        case = case_json(number, table, what_if={})
        case["bias"] = bias.tolist()
        case["whatif"] = {
            "form": "closed",
            "mix": mix,
            "attention": [packed(column.astype("<f4")) for column in attention.T],
            "logit_parts": {key: packed(column.astype("<f4")) for key, column in zip(THREE, parts.T, strict=True)},
            "link": RULES[name].link(),
        }
        cases[str(number)] = case
    index = drawn_index([table] * len(tries))
    index["task"] = {**index["task"], "outputs": list(THREE)}  # type: ignore[dict-item]  # a tree of JSON
    path = tmp_path / "page.html"
    path.write_text(static_page(index, cases, built, pictures=False), encoding="utf-8")
    one = look(path.as_uri())
    one.tab("What if")
    one.page.get_by_label("How many tiles").fill("40")
    for number, (name, mix) in enumerate(tries):
        one.page.locator(f"#case-{number}").click()
        one.ready()
        one.page.get_by_role("button", name="most for").click()
        state = one.state()
        assert (state["case"], len(state["without"])) == (number, 40)
        kept = np.ones(len(table), bool)
        kept[state["without"]] = False
        logits = forms[number].logits(kept)
        np.testing.assert_allclose(
            state["withoutValues"], RULES[name].values(logits), rtol=1e-10, err_msg=f"{name}, {mix}"
        )


def test_no_lasso_is_needed(plain: tuple[Look, ScoreTable]) -> None:
    """With keys alone: the tiles that speak most for the class."""
    one, table = plain
    values = shown(table, one.state()["score"]).values
    one.tab("What if")
    one.page.get_by_label("How many tiles").fill("7")
    one.page.get_by_role("button", name="most for").press("Enter")
    state = one.state()
    assert sorted(state["without"]) == sorted(np.argsort(-values, kind="stable")[:7].tolist())
    np.testing.assert_allclose(state["withoutValues"], expected(table, state["without"]), rtol=1e-12)
    said = one.page.locator(".result").inner_text()
    assert f"{100 * state['withoutValues'][1]:.1f} %" in said or "99.9" in said or "0.1 %" in said
    one.page.get_by_role("button", name="Put all back").click()
    assert one.state()["without"] == []


@pytest.mark.parametrize(("button", "sign"), [("most for", 1), ("most against", -1)])
def test_no_tile_is_left_out_for_what_it_does_not_say(plain: tuple[Look, ScoreTable], button: str, sign: int) -> None:
    """Where fewer speak for the class than were asked for, those that speak against it were left out with them."""
    one, table = plain
    values = sign * shown(table, one.state()["score"]).values
    one.tab("What if")
    one.page.get_by_label("How many tiles").fill(str(len(table)))
    one.page.get_by_role("button", name=button).click()
    assert sorted(one.state()["without"]) == np.flatnonzero(values > 0).tolist()
    one.page.get_by_text(f"No more than {(values > 0).sum()} tiles speak {button.removeprefix('most ')}.").wait_for()


def test_what_was_left_out_is_shown(plain: tuple[Look, ScoreTable]) -> None:
    one, _ = plain
    before = one.heat()
    one.page.keyboard.press("w")
    lasso(one, box((2, 1), (5, 3)))
    changed = (one.heat() != before).any(axis=-1)
    x, y = (round(value) for value in one.place(LATTICE.origin[0] + 3.5 * 253.3, LATTICE.origin[1] + 2.5 * 253.3))
    assert changed[y - 5 : y + 5, x - 5 : x + 5].all()
    x, y = (round(value) for value in one.place(LATTICE.origin[0] + 9.5 * 253.3, LATTICE.origin[1] + 2.5 * 253.3))
    assert not changed[y - 5 : y + 5, x - 5 : x + 5].any()


def test_answers_of_which_the_names_begin_alike_are_told_apart(built: Built, look: Open, tmp_path: Path) -> None:
    """Beside a what-if both were called "adenoca…"."""
    table, index = drawn_table(Lattice()), drawn_index([drawn_table(Lattice())])
    names = [f"adenocarcinoma of subtype {number}" for number in (1, 2)]
    for answer, name in zip(index["task"]["answers"], names, strict=True):  # type: ignore[index,call-overload,arg-type]
        answer["title"] = f"probability of {name}"
    page = static_page(index, {"0": drawn_case(0, table, None)}, built, pictures=False)
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    one = look((tmp_path / "page.html").as_uri())
    one.tab("What if")
    one.page.get_by_role("button", name="most for").click()
    shown = one.page.locator(".answer-line.compared .answer-title")
    assert shown.all_inner_texts() == names
    for title in shown.all():
        assert title.evaluate("one => one.scrollWidth <= one.clientWidth && one.scrollHeight <= one.clientHeight")


def test_nothing_is_answered_where_nothing_is_left(plain: tuple[Look, ScoreTable]) -> None:
    one, _ = plain
    one.tab("What if")
    one.page.get_by_role("button", name="Leave out all in view").click()
    assert "nothing is left to judge" in one.page.locator(".result").inner_text()
    assert one.state()["withoutValues"] is None
    assert one.page.get_by_role("button", name="Keep with the notes").is_disabled()


def test_an_outline_is_kept_only_where_it_tells_all_that_was_left_out(plain: tuple[Look, ScoreTable]) -> None:
    one, _ = plain
    page, keep = one.page, one.page.get_by_role("button", name="Keep with the notes")
    one.tab("What if")
    page.get_by_role("button", name="most for").click()
    page.keyboard.press("w")
    lasso(one, box((2, 1), (5, 3)), adds=True)
    assert set(one.state()["without"]) > inside((2, 1), (5, 3))
    keep.click()
    page.locator("#stage").focus()
    page.keyboard.press("w")
    lasso(one, box((2, 1), (5, 3)))
    keep.click()
    mixed, alone = one.state()["notes"]["pins"]
    assert mixed["xy0"] == []
    assert len(alone["xy0"]) > 3
    assert set(alone["without"]) == inside((2, 1), (5, 3))


def test_an_answer_of_a_patient_is_called_so(built: Built, look: Open, tmp_path: Path) -> None:
    table = drawn_table(LATTICE)
    for unit in ("patient", "slide"):
        index = drawn_index([table]) | {"unit": unit}
        path = tmp_path / f"{unit}.html"
        path.write_text(static_page(index, {"0": drawn_case(0, table, None)}, built, pictures=False), encoding="utf-8")
        one = look(path.as_uri())
        one.tab("What if")
        answer = one.page.get_by_label(f"Answer for this {unit}").inner_text()
        assert ("The answer is the patient's, over all its slides" in answer) == (unit == "patient")
        asks = one.page.get_by_text("What would the model say of this").inner_text()
        assert f"say of this {unit}" in asks


def test_the_first_of_equals_is_decided_for_as_in_python(built: Built, look: Open, tmp_path: Path) -> None:
    """Isotonic calibration is flat over much of its range, here at a half."""
    flat = ((0.0, 0.5), (1.0, 0.5))
    steps = Calibration(kind="isotonic", classes=2, fitted_on="val", rows=9, curves=(flat,))
    rule = AnswerRule(task=RULE.task, calibration=steps)
    table = drawn_table(LATTICE)
    table = replace(table, values=rule.values(table.logits))
    case = case_json(0, table, what_if=what_if_json(table, mix="single", rule=rule, recomputed=False))
    cohort = Cohort(model=MODEL, rule=rule, thresholds=RULE.task.decides_at, scores=(), cases=())
    index = drawn_index([table]) | {"thresholds": index_json(cohort)["thresholds"]}
    path = tmp_path / "page.html"
    path.write_text(static_page(index, {"0": case}, built, pictures=False), encoding="utf-8")
    one = look(path.as_uri())
    one.tab("What if")
    one.page.get_by_role("button", name="most for").click()
    assert one.state()["withoutValues"] == [0.5, 0.5]
    assert f"The answer stays {table.predicted}." in one.page.locator(".result").inner_text()


def test_notes_of_a_file_are_downloaded_as_qupath_takes_them(plain: tuple[Look, ScoreTable]) -> None:
    """As the server writes them, but for an outline that crosses itself, which is a line here and areas there."""
    one, table = plain
    page = one.page
    page.keyboard.press("w")
    lasso(one, box((2, 1), (5, 3)))
    page.get_by_role("button", name="Keep with the notes").click()
    page.get_by_role("button", name="Disagree").click()
    page.get_by_label("Note on this slide").fill("=SUM(A1) <b>stroma</b>")
    page.get_by_role("button", name="Pin", exact=True).click()
    page.mouse.click(*one.screen(1000, 900))
    page.get_by_role("button", name="Outline").click()
    # An outline that crosses itself.
    lasso(one, [(600, 600), (2600, 2200), (2600, 600), (600, 2200)])
    with page.expect_download() as download:
        page.get_by_role("button", name="Download GeoJSON").click()
    assert download.value.suggested_filename == "slide-a.geojson"
    tree = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    assert geojson.loads(json.dumps(tree)).is_valid
    assert [shapely.geometry.shape(one["geometry"]).is_valid for one in tree["features"]] == [True] * 4
    assert [one["geometry"]["type"] for one in tree["features"]] == ["Polygon", "Polygon", "Point", "LineString"]
    assert all(one["properties"]["objectType"] == "annotation" for one in tree["features"])
    assert all(len(one["properties"]["classification"]["color"]) == 3 for one in tree["features"])
    pinned = tree["features"][2]["geometry"]["coordinates"]
    scale = one.state()["placement"]["scale"]
    assert np.abs(np.subtract(pinned, (1000, 900))).max() <= 1 / scale
    assert tree["wsimil"]["notes"]["pins"][0]["without"] == sorted(inside((2, 1), (5, 3)))
    notes, saved = parse_notes(tree["wsimil"]["notes"], tiles=len(table), answers=2), tree["wsimil"]["saved"]
    written = notes_geojson(notes, table, saved=saved)
    assert tree["wsimil"] == written["wsimil"] | {"model": tree["wsimil"]["model"], "version": "0.0.1"}
    for ours, theirs in zip(tree["features"], written["features"], strict=True):
        assert ours["properties"] == theirs["properties"]
    for ours, theirs in zip(tree["features"][:3], written["features"][:3], strict=True):
        assert shapely.geometry.shape(ours["geometry"]).equals(shapely.geometry.shape(theirs["geometry"]))
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").click()
    text = Path(download.value.path()).read_text(encoding="utf-8")
    assert text == notes_csv([("slide-a", saved, notes)], table.task.answers)
    assert "'=SUM(A1) <b>stroma</b>" in text
    assert len(text.splitlines()) == 5


@pytest.mark.parametrize("known", [True, False])
def test_notes_of_a_file_count_from_the_scan_or_say_that_nobody_knows_where_it_begins(
    built: Built, look: Open, tmp_path: Path, known: bool
) -> None:
    """They said "bounds" and counted from level 0, so that QuPath showed them aside."""
    table = replace(drawn_table(Lattice()), bounds0_px=(130, 70, 3900, 3200), bounds_known=known)
    one = look(write_page(tmp_path / "page.html", built, [table]))
    one.tab("Notes")
    one.page.get_by_role("button", name="Pin", exact=True).click()
    one.page.mouse.click(*one.screen(1000, 900))
    with one.page.expect_download() as download:
        one.page.get_by_role("button", name="Download GeoJSON").click()
    tree = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    notes, about = parse_notes(tree["wsimil"]["notes"], tiles=len(table), answers=2), tree["wsimil"]
    written = notes_geojson(notes, table, saved=about["saved"], origin="bounds" if known else "level0")
    assert (about["origin"], about["offset_level0_px"]) == (("bounds", [130, 70]) if known else ("level0", [0, 0]))
    assert tree["features"][0]["geometry"] == written["features"][0]["geometry"]
    assert ("Where the scan begins is not known" in one.page.locator(".toast").inner_text()) != known
