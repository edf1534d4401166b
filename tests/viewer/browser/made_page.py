"""Pages made by hand from drawn tables and a drawn picture, so that what a browser shows can be computed beside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsimil.export.answers import AnswerRule
from wsimil.export.scores import EXACT, ScoreTable
from wsimil.export.viewer.built import Built
from wsimil.export.viewer.page import static_page
from wsimil.export.viewer.payload import case_json, what_if_json
from wsimil.export.viewer.pyramid import Pyramid
from wsimil.provenance import Json
from wsimil.targets import Classification

TASK = Classification(classes=("normal", "tumor"))
RULE = AnswerRule(task=TASK)
SIZE0_PX = (4100, 3333)
MPP = 0.2527
RANGE = 0.02
DARK = 40
HOSTILE = '"><img src=x onerror="window.hurt=1"><script>window.hurt=1</script>../../etc/passwd\n=1+1' + "x" * 220


@dataclass(frozen=True, slots=True, kw_only=True)
class Lattice:
    """Where tiles lie: fractional sides, corners rounded to whole level-0 px as a grid of tiles has them."""

    size0: float = 253.3
    stride0: float = 253.3
    origin: tuple[int, int] = (131, 77)
    columns: int = 13
    rows: int = 11

    @property
    def xy0(self) -> NDArray[np.int64]:
        x = np.round(self.origin[0] + self.stride0 * np.arange(self.columns)).astype(np.int64)
        y = np.round(self.origin[1] + self.stride0 * np.arange(self.rows)).astype(np.int64)
        return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def drawn_table(
    lattice: Lattice,
    *,
    slide_id: str = "slide-a",
    seed: int = 0,
    size0_px: tuple[int, int] = SIZE0_PX,
    unscored: Sequence[int] = (),
) -> ScoreTable:
    """A slide as gated attention with a linear head answers: contributions are attention times what a tile says."""
    rng = np.random.default_rng(seed)
    xy0 = lattice.xy0
    share = rng.dirichlet(np.full(len(xy0), 0.5)).astype(np.float32)
    says = rng.normal(scale=2.0, size=(len(xy0), 2)).astype(np.float32)
    scores = np.column_stack([share, share[:, None] * says]).astype(np.float32)
    bias = np.array([0.1, -0.2])
    logits = bias + scores[:, 1:].astype(np.float64).sum(axis=0) / share.astype(np.float64).sum()
    scores[list(unscored)] = np.nan
    return ScoreTable(
        slide_id=slide_id,
        slide_size0_px=size0_px,
        bounds0_px=(0, 0, *size0_px),
        mpp=MPP,
        tile_mpp=0.5,
        size0=lattice.size0,
        size0_px=round(lattice.size0),
        stride0=lattice.stride0,
        xy0=xy0,
        score_names=("attention", "contribution:normal", "contribution:tumor"),
        scores=scores,
        score_rules={"attention": "softmax over the bag", "contribution:normal": EXACT, "contribution:tumor": EXACT},
        task=TASK,
        values=RULE.values(logits),
        logits=logits,
        bias=bias,
        model={"method": "abmil"},
    )


def drawn_case(index: int, table: ScoreTable, picture: NDArray[np.uint8] | None) -> dict[str, Json]:
    """What the page is told of it, with all tiles of its pyramid in it."""
    case = case_json(index, table, what_if=what_if_json(table, mix="single", rule=RULE, recomputed=False))
    if picture is None:
        case["pyramid_note"] = "the slide was moved"
        return case
    pyramid = Pyramid(size0_px=table.slide_size0_px)
    case["pyramid"] = pyramid.to_json({"data": _pyramid_tiles(pyramid, picture)})
    return case


def drawn_index(cases: Sequence[ScoreTable | str]) -> dict[str, Json]:
    """The list; a text stands for a slide by that name which cannot be loaded."""
    return {
        "version": "0.0.1",
        "date": "2026-01-02",
        "notice": "Research use only. Not for diagnosis.",
        "unit": "slide",
        "model": {"method": "abmil", "weights": "0123456789ab"},
        "task": {
            "kind": "classification",
            "answers": [
                {"name": one.name, "title": one.title, "unit": one.unit, "probability": one.probability}
                for one in TASK.answers
            ],
            "outputs": list(TASK.outputs),
            "raises": ["against", "for"],
        },
        "thresholds": [],
        "scores": [
            _score("attention", "attention (not evidence), uniform = 1", "sequential", [0.0, 4.0]),
            _score("contribution:normal", "contribution to normal", "signed", [-RANGE, RANGE]),
            _score("contribution:tumor", "contribution to tumor", "signed", [-RANGE, RANGE]),
        ],
        "cases": [_listed(number, case) for number, case in enumerate(cases)],
    }


def write_page(
    path: Path, built: Built, cases: Sequence[ScoreTable | str], pictures: Mapping[str, NDArray[np.uint8]] | None = None
) -> str:
    """One file that holds everything; its URL. A text among `cases` stands for a slide that cannot be loaded."""
    held: dict[str, Json] = {
        str(number): {"error": "its scores cannot be read"}
        if isinstance(case, str)
        else drawn_case(number, case, (pictures or {}).get(case.slide_id))
        for number, case in enumerate(cases)
    }
    path.write_text(static_page(drawn_index(cases), held, built, pictures=False), encoding="utf-8")
    return path.as_uri()


def grey_picture(
    size0_px: tuple[int, int] = SIZE0_PX, dark: tuple[int, int, int, int] | None = None
) -> NDArray[np.uint8]:
    """A light slide, with one dark rectangle where it is told (left, top, right, bottom)."""
    picture = np.full((size0_px[1], size0_px[0], 3), 230, np.uint8)
    if dark is not None:
        picture[dark[1] : dark[3], dark[0] : dark[2]] = DARK
    return picture


def _pyramid_tiles(pyramid: Pyramid, picture: NDArray[np.uint8]) -> dict[str, Json]:
    found: dict[str, Json] = {}
    for level, x, y in pyramid.all_tiles():
        tile = pyramid.tile(level, x, y)
        step = tile.downsample
        (left, top), (wide, high) = tile.xy0, tile.size_px
        rows = np.minimum(top + step // 2 + step * np.arange(high), picture.shape[0] - 1)
        columns = np.minimum(left + step // 2 + step * np.arange(wide), picture.shape[1] - 1)
        # Stored without loss, so that an edge stays where it was drawn.
        data = io.BytesIO()
        Image.fromarray(picture[np.ix_(rows, columns)]).save(data, "PNG", compress_level=1)
        found[f"{level}/{x}_{y}"] = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
    return found


def _score(name: str, label: str, kind: str, shown: list[Json]) -> dict[str, Json]:
    return {
        "name": name,
        "label": label,
        "kind": kind,
        "unit": "logit" if kind == "signed" else "× uniform",
        "zero": "0 = adds nothing" if kind == "signed" else "",
        "rule": "exact",
        "normalization": "fixed for this test",
        "range": shown,
    }


def _listed(index: int, case: ScoreTable | str) -> dict[str, Json]:
    known = isinstance(case, ScoreTable)
    return {
        "index": index,
        "slide_id": case.slide_id if isinstance(case, ScoreTable) else case,
        "patient_id": None,
        "label": "tumor",
        "split": "test",
        "predicted": case.predicted if isinstance(case, ScoreTable) else None,
        "right": case.predicted == "tumor" if isinstance(case, ScoreTable) else None,
        "values": case.values.tolist() if isinstance(case, ScoreTable) else None,
        "confidence": case.task.confidence(case.values) if isinstance(case, ScoreTable) else None,
        "uncertainty": 0.5 if known else None,
        "unusual": False,
        "tiles": len(case) if isinstance(case, ScoreTable) else None,
        "scored": True,
        "status": "ok" if known else "failed",
    }
