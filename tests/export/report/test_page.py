"""The page in a browser: it says what metrics.json says, needs nothing else, and whatever a name holds is text."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.export.report.browser import Page, cut_in_print, opened
from tests.stages.made_runs import KINDS, answers, write_cohort, write_run
from wsimil.export.report.card import inert
from wsimil.export.report.cells import Cells, p_text, shown
from wsimil.stages.compare import compare
from wsimil.stages.evaluate import EvaluateOptions, evaluate
from wsimil.store import open_store
from wsimil.targets import Classification
from wsimil.testing.store_laws import make_bag

QUICK = EvaluateOptions(replicates=150)
HOSTILE = (
    "<script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "\"><svg onload=document.title='owned'>",
    "' onmouseover='document.title=1' x='",
    "{{ 7 * 191 }}{% for x in y %}",
    "../../x",
    "a\nb\r\nc",
    "\u202etfel-ot-thgir\u2066",
    "שלום عربى 组织 Ünïcode 🔬",
    "x" * 300,
    "]]></style></title><b>bold</b><!--",
    "javascript:document.title='owned'",
    "=cmd|' /C calc'!A0",
    "[link](http://evil.example) www.evil.example `code` | cell |",
)
ALLOWED = {
    "html", "head", "meta", "title", "style", "body", "header", "p", "h1", "h2", "h3", "strong", "div", "nav", "ol", "ul",
    "li", "a", "main", "span", "b", "table", "thead", "tbody", "tr", "th", "td", "caption", "bdi", "br", "figure",
    "figcaption", "svg", "desc", "path", "polyline", "polygon", "circle", "rect", "text", "img", "dl", "dt", "dd", "code",
    "footer",
}  # fmt: skip


def numbers_agree(page: Page, tree: dict[str, object]) -> int:
    """How many numbers the page shows; each must be what stands in metrics.json, as far as its digits go."""
    for where, text in page.metrics:
        node: object = tree
        for part in where.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            node = node[int(key)] if isinstance(node, list) else node[key]  # type: ignore[index]
        if text == "–":
            assert node is None, where
        elif text == "<0.001":
            assert 0 <= float(node) < 0.001, where  # type: ignore[arg-type]
        else:
            digits = len(text.partition(".")[2])
            assert float(text.replace("−", "-")) == pytest.approx(float(node), abs=0.5000001 * 10**-digits), where  # type: ignore[arg-type]
            assert digits or float(node) == int(node), where  # type: ignore[arg-type]
    return len(page.metrics)


def is_self_contained(page: Page, text: str) -> None:
    policy = next(own["content"] for tag, own in page.elements if own.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';")
    assert page.console == ""
    for tag, own in page.elements:
        assert tag in ALLOWED, tag
        assert not [name for name in own if name.startswith("on")], own
        for name in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
            assert own.get(name, "#").startswith(("#", "data:image/jpeg;base64,")), own
        assert "url(" not in own.get("style", "")
    assert not re.search(r"@import|url\(", text)


@pytest.mark.parametrize("kind", KINDS)
def test_a_browser_shows_the_numbers_of_metrics_json(kind: str, tmp_path: Path) -> None:
    task, labels, values = answers(kind, 80)
    write_run(tmp_path / "run", task, labels, values)
    evaluate([tmp_path / "run"], write_cohort(tmp_path / "c.csv", task, labels), tmp_path / "out", options=QUICK)
    page = opened(tmp_path / "out/report.html", tmp_path / "profile")
    tree = json.loads((tmp_path / "out/metrics.json").read_text(encoding="utf-8"))
    assert numbers_agree(page, tree) > 100
    is_self_contained(page, (tmp_path / "out/report.html").read_text(encoding="utf-8"))
    shown_metrics = {where for where, _ in page.metrics}
    main = next(iter(tree["metrics"]))
    assert {f"/metrics/{main}/value", f"/metrics/{main}/low", "/groups/site/0/rows", "/flow/0/units"} <= shown_metrics
    assert "For research use only" in page.text
    assert cut_in_print(tmp_path / "out/report.html") == []
    # Labels that do not exclude each other, and numbers, are drawn without strata.
    assert ("within classes" in page.text) == (kind in ("two", "three"))


def test_a_browser_shows_the_numbers_of_a_comparison(tmp_path: Path) -> None:
    task, labels, values = answers("two", 80)
    write_run(tmp_path / "a", task, labels, values)
    write_run(tmp_path / "b", task, labels, answers("two", 80, seed=1)[2])
    cohort = write_cohort(tmp_path / "c.csv", task, labels)
    compare(tmp_path / "a", tmp_path / "b", cohort, tmp_path / "out", options=QUICK)
    page = opened(tmp_path / "out/report.html", tmp_path / "profile")
    assert numbers_agree(page, json.loads((tmp_path / "out/metrics.json").read_text(encoding="utf-8"))) > 60
    is_self_contained(page, (tmp_path / "out/report.html").read_text(encoding="utf-8"))
    assert {where for where, _ in page.metrics} >= {"/differences/auroc/p_value", "/delong/tumor/z"}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of slides, patients, sites and classes whose names attack it."""
    root = tmp_path_factory.mktemp("hostile")
    count = 20 * len(HOSTILE)
    classes = (HOSTILE[1], HOSTILE[0])
    rng = np.random.default_rng(0)
    targets = rng.integers(2, size=count)
    shares = np.clip(0.5 + 0.2 * (2 * targets - 1) + 0.25 * rng.normal(size=count), 0.01, 0.99)
    ids = [f"{HOSTILE[i % len(HOSTILE)]}{i}" for i in range(count)]
    patients = [f"{i}{HOSTILE[i % len(HOSTILE)]}" for i in range(count)]
    sites = [HOSTILE[i // 20] for i in range(count)]
    task = Classification(classes=tuple(sorted(classes)))
    shown_as = [np.array([1 - share, share]) for share in shares]
    labels = [task.classes[target] for target in targets]
    # Ids as cells of a table have them: without spaces around.
    ids, patients = [one.strip() for one in ids], [one.strip() for one in patients]
    write_run(root / "run <b>", task, labels, shown_as, ids=ids, patients=patients)
    cohort = write_cohort(root / "c <i>.csv", task, labels, ids=ids, patients=patients, sites=sites)
    evaluate([root / "run <b>"], cohort, root / "out", options=QUICK)
    compare(root / "run <b>", root / "run <b>", cohort, root / "compared", options=QUICK)
    return root


@pytest.mark.parametrize("folder", ["out", "compared"])
def test_hostile_names_are_text_in_a_browser(folder: str, hostile: Path, tmp_path: Path) -> None:
    file = hostile / folder / "report.html"
    page = opened(file, tmp_path / "profile")
    is_self_contained(page, file.read_text(encoding="utf-8"))
    assert "owned" not in page.title
    assert "1337" not in page.text
    tree = json.loads((hostile / folder / "metrics.json").read_text(encoding="utf-8"))
    assert numbers_agree(page, tree) > 50
    if folder == "out":
        spoken = " ".join(page.text.split())
        for name in HOSTILE[:9]:
            assert " ".join(name.split()) in spoken
        assert {row["group"] for row in tree["groups"]["site"]} == {name.replace("\r\n", "\n") for name in HOSTILE}


def test_hostile_names_are_text_in_tables_and_cards(hostile: Path) -> None:
    card = (hostile / "out/MODEL_CARD.md").read_text(encoding="utf-8")
    bare = re.sub(r"\\.", "", card)
    for part in ("<", ">", "](", "http:", "www.", "javascript:document.title='owned'</", "\u202e", "\r"):
        assert part not in bare.replace("&nbsp;", ""), part
    # Every row of a table has as many cells as its head.
    for block in re.findall(r"(?:^\|.*\n)+", bare, flags=re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1, block[:300]
    table = (hostile / "out/predictions.csv").read_text(encoding="utf-8")
    assert "\n=cmd" not in table
    assert ",=cmd" not in table


def test_a_name_survives_being_made_inert() -> None:
    assert inert("gated_abmil") == r"gated\_abmil"
    assert inert("a\nb | c <d>") == r"a b \| c \<d\>"
    assert len(inert("x" * 300)) == 81


def test_a_report_of_1000_slides_with_thumbnails_is_below_2_mb(tmp_path: Path) -> None:
    task, labels, values = answers("two", 1000)
    write_run(tmp_path / "run", task, labels, values)
    cohort = write_cohort(tmp_path / "c.csv", task, labels)
    store = open_store(tmp_path / "features", mode="w")
    noise = np.random.default_rng(0).integers(0, 256, size=(600, 800, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG", quality=90)
    (tmp_path / "features/thumbnails").mkdir()
    bag = make_bag("s0", n=1, dim=2)
    store.write(bag)
    for i in range(1000):
        (tmp_path / f"features/thumbnails/s{i}.jpg").write_bytes(buffer.getvalue())
        if i:
            (tmp_path / f"features/s{i}.h5").hardlink_to(tmp_path / "features/s0.h5")
    options = EvaluateOptions(replicates=150, features=tmp_path / "features")
    evaluate([tmp_path / "run"], cohort, tmp_path / "out", options=options)
    text = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert text.count("data:image/jpeg;base64,") == 24
    assert len(text.encode("utf-8")) < 2_000_000


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"), (0.9996, "1.000"), (12.345, "12.35"), (-0.5, "−0.500"), (7, "7"), (1234.56, "1234.6"), (0, "0"),
        (0.0, "0.000"), (-2.2e-16, "0.000"), (0.0421, "0.042"), (0.00421, "0.00421"), (-0.00042, "−0.000420"),
        (4.2e-6, "0.00000420"), (4.2e-7, "4.20e-07"),
    ],
)  # fmt: skip
def test_numbers_are_shown_with_the_digits_that_matter(value: float | None, text: str) -> None:
    """An error of 0.0004 in the unit of the truth, and a threshold of it, stood in a report as 0.000."""
    assert shown(value) == text


def test_p_values_are_shown_in_thousandths() -> None:
    assert [p_text(value) for value in (None, 0.00099, 0.0042, 0.5, 1.0)] == ["–", "<0.001", "0.004", "0.500", "1.000"]


def test_a_number_that_is_not_in_metrics_json_cannot_be_shown() -> None:
    cells = Cells(tree={"metrics": {"auroc": {"value": 0.5, "low": None, "high": None}}})
    assert 'data-metric="/metrics/auroc/value">0.500<' in cells.number(["metrics", "auroc", "value"])
    assert "to" not in re.sub("<.*?>", "", cells.interval(["metrics", "auroc"]))
    read: Callable[[], object] = lambda: cells.number(["metrics", "auprc", "value"])  # noqa: E731
    with pytest.raises(KeyError):
        read()
