"""The one store of a slide's tile scores, `scores.parquet`; every other export is a function of what is read from it.

Columns: tile_id int32; x, y int64 and w, h int32 in level-0 px (top-left corner and side of a tile, of the slide as OpenSlide
sees it); then one float32 column for each raw score. The parquet metadata key b"wsimil" holds a JSON header with all that the
columns do not say. Neither holds a path or any property of the slide but its geometry, and a hash by which whoever has its
file can tell it from others; under a pseudonym not that either, as it would tell them whose name it is.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from wsimil.errors import ConfigError, ModelError, StoreError
from wsimil.evaluation.calibration import frozen_calibrations
from wsimil.evaluation.prediction import Prediction
from wsimil.files import atomic_path
from wsimil.geometry import Origin
from wsimil.provenance import Json, canonical_json
from wsimil.pseudonyms import is_pseudonym
from wsimil.targets import Classification, Task, from_json

Tissue: TypeAlias = tuple[tuple[NDArray[np.int64], ...], ...]
"""Polygons of rings int64 [n, 2] in level-0 px, the outer one first, closed or not."""

SCHEMA = "wsimil/scores/3"
_WITHOUT_RULES = "wsimil/scores/2"
"""Held scores of three kinds alone, of which each was always made in one way, and did not say so."""
NOT_RECORDED = "not recorded"
_OF_CLASSES = "wsimil/scores/1"
"""Held also classes and probabilities where the schema holds task and values."""
EXACT = "exact"
"""The rule of contributions that are the terms of a sum, as `wsimil.evaluation.attribution` names it."""
_OLD_RULES = {
    "contribution": EXACT,
    "score": "the method's own logit of the tile",
}
_BY_DEFAULT = ("contribution", "single", "leave_one_out", "integrated_gradients", "gradient_x_input", "score")
_KEY = b"wsimil"
_PLACE = ("tile_id", "x", "y", "w", "h")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoreTable:
    """Raw scores of one slide's tiles and where the tiles lie: `xy0` int64 [N, 2], `scores` float32 [N, K], NaN = not scored.

    `size0_px` is the side of a tile in whole level-0 px, `size0` and `stride0` are exact; `slide_size0_px` (W, H) and
    `bounds0_px` (x, y, w, h) describe the slide, as far as `size_known` and `bounds_known` say; `mpp` is µm per level-0 px,
    `tile_mpp` that of a tile as the encoder saw it.
    `score_rules` say by name how a score was made, such as "exact"; `bias` is what contributions leave to the logits, on this
    slide.
    `tissue` is what was found to be tissue; empty where that is not known. `slide_content` is what `hashed_content` makes of the
    slide's content digest; empty where that is not known, or is not to be told.
    """

    slide_id: str
    slide_size0_px: tuple[int, int]
    bounds0_px: tuple[int, int, int, int]
    mpp: float
    tile_mpp: float
    size0: float
    size0_px: int
    stride0: float
    xy0: NDArray[np.int64]
    score_names: tuple[str, ...]
    scores: NDArray[np.float32]
    task: Task
    values: NDArray[np.float64]
    logits: NDArray[np.float64]
    bias: NDArray[np.float64]
    model: Mapping[str, Json]
    score_rules: Mapping[str, str] = field(default_factory=dict)
    tissue: Tissue = ()
    slide_content: str = ""
    size_known: bool = True
    bounds_known: bool = True

    def __post_init__(self) -> None:
        if self.xy0.dtype != np.int64 or self.xy0.ndim != 2 or self.xy0.shape[1] != 2 or not len(self.xy0):
            raise ValueError(f"xy0 is int64 [N, 2] with N >= 1, got {self.xy0.dtype} {self.xy0.shape}")
        shape = (len(self.xy0), len(self.score_names))
        if self.scores.dtype != np.float32 or self.scores.shape != shape:
            raise ValueError(f"scores are float32 {list(shape)}, got {self.scores.dtype} {self.scores.shape}")
        if np.isinf(self.scores).any():
            raise ValueError(
                f"scores are finite, or NaN where there is none; {int(np.isinf(self.scores).sum())} are not"
            )
        if set(self.score_names) & set(_PLACE) or len(set(self.score_names)) != len(self.score_names):
            raise ValueError(f"names of scores are unique and none of {', '.join(_PLACE)}, got {self.score_names}")
        if not (self.size0 > 0 and self.stride0 > 0 and self.size0_px > 0 and self.mpp > 0 and self.tile_mpp > 0):
            raise ValueError(f"sides, strides and mpp are positive, got {self.size0}, {self.stride0}, {self.mpp}")
        outputs, answers = len(self.task.outputs), len(self.task.answers)
        numbers = {"values": (self.values, answers), "logits": (self.logits, outputs), "bias": (self.bias, outputs)}
        for name, (values, count) in numbers.items():
            if values.dtype != np.float64 or values.shape != (count,):
                raise ValueError(f"{name} are float64 [{count}], got {values.dtype} {values.shape}")
        for array in (self.xy0, self.scores, self.values, self.logits, self.bias):
            array.setflags(write=False)

    def __len__(self) -> int:
        return len(self.xy0)

    @property
    def predicted(self) -> str:
        """The answer in words, such as the class with the highest probability."""
        return self.task.decided(self.values)

    @property
    def unit(self) -> str:
        """What the answer is of: "slide", or "patient" where it is of all slides of one."""
        return "patient" if "patient" in self.model else "slide"

    @property
    def answer_of(self) -> str:
        """The same with its id."""
        return f"{self.unit} {self.model.get('patient', self.slide_id)}"

    @property
    def bag_tiles(self) -> int | None:
        """How many tiles the answer is of, over which attention sums to 1: where it is a patient's, those of all its slides.

        None where nobody said so, as in tables of patients of earlier versions.
        """
        if self.unit == "slide":
            return len(self)
        tiles = self.model.get("patient_tiles")
        return tiles if isinstance(tiles, int) and tiles >= len(self) else None

    @property
    def tiling(self) -> str:
        """SHA-256 over where the tiles lie and of which spacing they are, 64 hex digits: two tables that agree in it number
        the same places alike.
        """
        sides = f"{self.slide_size0_px} {self.size0!r} {self.tile_mpp!r} {len(self)}\0"
        return hashlib.sha256(sides.encode("ascii") + self.xy0.astype("<i8").tobytes()).hexdigest()

    def origin0_px(self, origin: Origin) -> tuple[int, int]:
        """Where coordinates of `origin` begin, level-0 px. Raises StoreError where nobody knows."""
        if origin == "level0":
            return 0, 0
        if not self.bounds_known:
            raise StoreError(
                f"slide {self.slide_id!r}: where its scan begins is not known, because its features were made by another tool and"
                " converted without the slide, and QuPath counts from there; say --origin level0, or convert the features with"
                " --slides and predict again"
            )
        return self.bounds0_px[:2]

    def other_content(self, digest: str) -> str | None:
        """Why a slide of the content `digest` is not the one that was scored; None where it is, or where one is not known."""
        found = hashed_content(digest)
        if not self.slide_content or not found or found == self.slide_content:
            return None
        return (
            f"slide {self.slide_id!r}: the file's content has the hash {found[:12]}, scores are of one of"
            f" {self.slide_content[:12]}; it is another slide, or a changed copy: give the file that was predicted, or extract"
            " and predict this one"
        )

    @property
    def main_score(self) -> str:
        """The score that a heatmap shows by default: the contribution to the answer, else the next kind that is there.

        Attention is shown by default where a table holds nothing else. Raises KeyError where it holds no score.
        """
        output = self.task.main_output(self.values)
        for kind in _BY_DEFAULT:
            if f"{kind}:{output}" in self.score_names:
                return f"{kind}:{output}"
        if not self.score_names:
            raise KeyError(f"slide {self.slide_id!r} has no scores on its tiles, so it has no heatmap")
        return self.score_names[0]

    def answer(self, name: str) -> float:
        """One number of the slide's answer, such as "prob_tumor". Raises KeyError where the task does not give it."""
        names = [column.name for column in self.task.answers]
        if name not in names:
            raise KeyError(f"slide {self.slide_id!r} has no answer {name!r}, only {', '.join(names)}")
        return float(self.values[names.index(name)])

    def score(self, name: str) -> NDArray[np.float32]:
        """One raw score, float32 [N]. Raises KeyError where the table does not hold it."""
        if name not in self.score_names:
            raise KeyError(
                f"slide {self.slide_id!r} has no score {name!r}, only {', '.join(self.score_names) or 'none'}"
            )
        return self.scores[:, self.score_names.index(name)]

    def rule(self, name: str) -> str:
        """How a score was made, "not recorded" where nobody said so."""
        return self.score_rules.get(name, NOT_RECORDED)


def hashed_content(digest: str) -> str:
    """SHA-256 over a slide's content digest, 64 hex digits whatever a foreign digest may hold; empty where there is none."""
    return hashlib.sha256(f"wsimil scores\0{digest}".encode("utf-8", "surrogatepass")).hexdigest() if digest else ""


def score_table(prediction: Prediction, *, tissue: Tissue = ()) -> ScoreTable:
    """What `write_scores` writes of a prediction and `read_scores` gives back."""
    grid = prediction.grid
    slide, spec = grid.slide, grid.spec
    return ScoreTable(
        slide_id=prediction.slide_id,
        slide_size0_px=slide.size0_px,
        bounds0_px=slide.bounds0_px,
        mpp=slide.mpp,
        tile_mpp=spec.mpp,
        size0=grid.size0,
        size0_px=grid.size0_px,
        stride0=spec.stride_px * spec.mpp / slide.mpp,
        xy0=grid.xy0,
        score_names=prediction.score_names,
        score_rules=prediction.score_rules,
        scores=prediction.scores,
        task=prediction.task,
        values=prediction.values,
        logits=prediction.logits,
        bias=prediction.bias,
        model=prediction.model,
        tissue=tissue,
        slide_content="" if is_pseudonym(slide.slide_id) else hashed_content(slide.digest),
        size_known=prediction.size_known,
        bounds_known=prediction.bounds_known,
    )


def write_scores(path: Path, prediction: Prediction, *, tissue: Tissue = ()) -> None:
    """Write `scores.parquet` atomically; the same prediction gives the same bytes with the same pyarrow.

    Raises OutputError.
    """
    table = score_table(prediction, tissue=tissue)
    side = np.full(len(table), table.size0_px, np.int32)
    columns = {
        "tile_id": np.arange(len(table), dtype=np.int32),
        "x": table.xy0[:, 0],
        "y": table.xy0[:, 1],
        "w": side,
        "h": side,
        **{name: table.score(name) for name in table.score_names},
    }
    arrow = pa.table({name: _numbers(np.ascontiguousarray(values)) for name, values in columns.items()})
    arrow = arrow.replace_schema_metadata({_KEY: canonical_json(_header(table)).encode("utf-8")})
    with atomic_path(path) as temporary:
        pq.write_table(arrow, temporary, compression="zstd", version="2.6")


def read_scores(path: Path) -> ScoreTable:
    """Read what `write_scores` wrote. Raises StoreError where the file is missing, broken, foreign or of a newer schema."""
    try:
        arrow = pq.read_table(path, partitioning=None, memory_map=False)
    except FileNotFoundError:
        raise StoreError(f"score table {path} does not exist; make it with wsimil predict") from None
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"score table {path} cannot be read ({error}); make it anew with wsimil predict") from error
    text = (arrow.schema.metadata or {}).get(_KEY)
    if text is None:
        raise StoreError(
            f"{path} is a parquet file, but not one with tile scores of wsimil (its metadata has no {_KEY!r})"
        )
    try:
        header = json.loads(text)
        if header["schema"] not in (SCHEMA, _WITHOUT_RULES, _OF_CLASSES):
            raise StoreError(f"score table {path} has schema {header['schema']!r}, wanted {SCHEMA!r}; update wsimil")
        return _table(header, arrow)
    except (ModelError, ConfigError) as error:
        raise StoreError(f"score table {path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, zlib.error) as error:
        raise StoreError(
            f"score table {path} is not whole: {type(error).__name__}: {error}; make it anew with wsimil predict"
        ) from error


def _header(table: ScoreTable) -> dict[str, Json]:
    return {
        "schema": SCHEMA,
        "slide": {
            "slide_id": table.slide_id,
            "size0_px": list(table.slide_size0_px),
            "bounds0_px": list(table.bounds0_px),
            "mpp": table.mpp,
            "size_known": table.size_known,
            "bounds_known": table.bounds_known,
            **({"content": table.slide_content} if table.slide_content else {}),
        },
        "tiles": {
            "frame": "level-0 px, x to the right, y down, from the top-left edge of the slide as OpenSlide sees it",
            "size0": table.size0,
            "size0_px": table.size0_px,
            "stride0": table.stride0,
            "mpp": table.tile_mpp,
        },
        "scores": [_column(name, table.rule(name)) for name in table.score_names],
        "task": table.task.to_json(),
        "values": table.values.tolist(),
        "logits": table.logits.tolist(),
        "bias": table.bias.tolist(),
        "model": dict(table.model),
        **({"tissue": _packed(table.tissue)} if table.tissue else {}),
    }


def _column(name: str, rule: str) -> dict[str, Json]:
    kind, _, of = name.partition(":")
    return {"column": name, "kind": kind, "of": of or None, "rule": rule}


def _numbers(values: NDArray[np.generic]) -> pa.Array:
    """The same memory. `pa.array` would import pandas to ask whether this is a series: 45 MB beside a slide's features."""
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def _rule(column: Mapping[str, Json], schema: Json) -> str:
    """As the header has it; of older schemas what was then meant. Raises KeyError."""
    return str(column["rule"] if schema == SCHEMA else _OLD_RULES.get(str(column["kind"]), NOT_RECORDED))


def _table(header: Mapping[str, Json], arrow: pa.Table) -> ScoreTable:
    slide: dict[str, Json] = header["slide"]  # type: ignore[assignment]  # a wrong shape is a TypeError, which is reported
    tiles: dict[str, Json] = header["tiles"]  # type: ignore[assignment]
    scores: list[dict[str, Json]] = header["scores"]  # type: ignore[assignment]
    model: dict[str, Json] = header["model"]  # type: ignore[assignment]
    old = header["schema"] == _OF_CLASSES
    names = tuple(str(column["column"]) for column in scores)
    values = [arrow.column(name).to_numpy() for name in names]
    xy0 = np.stack([arrow.column("x").to_numpy(), arrow.column("y").to_numpy()], axis=1)
    left, top, width, height = (int(value) for value in slide["bounds0_px"])  # type: ignore[union-attr,arg-type]
    full_width, full_height = (int(value) for value in slide["size0_px"])  # type: ignore[union-attr,arg-type]
    task = Classification(classes=tuple(map(str, header["classes"]))) if old else from_json(header["task"])  # type: ignore[arg-type]
    _refuse_calibrations(model, task)
    return ScoreTable(
        slide_id=str(slide["slide_id"]),
        slide_size0_px=(full_width, full_height),
        bounds0_px=(left, top, width, height),
        mpp=float(slide["mpp"]),  # type: ignore[arg-type]
        tile_mpp=float(tiles["mpp"]),  # type: ignore[arg-type]
        size0=float(tiles["size0"]),  # type: ignore[arg-type]
        size0_px=int(tiles["size0_px"]),  # type: ignore[arg-type]
        stride0=float(tiles["stride0"]),  # type: ignore[arg-type]
        xy0=xy0,
        score_names=names,
        score_rules={str(column["column"]): _rule(column, header["schema"]) for column in scores},
        scores=np.stack(values, axis=1) if values else np.empty((len(xy0), 0), np.float32),
        task=task,
        values=np.array(header["probabilities" if old else "values"], np.float64),
        logits=np.array(header["logits"], np.float64),
        bias=np.array(header["bias"], np.float64),
        model=MappingProxyType(model),
        tissue=_tissue(header.get("tissue")),
        slide_content=str(slide.get("content", "")),
        size_known=slide.get("size_known", True) is not False,
        bounds_known=slide.get("bounds_known", True) is not False,
    )


def _refuse_calibrations(model: Mapping[str, Json], task: Task) -> None:
    """Raises where those of the model cannot be read or are of another number of classes: maps are drawn by them."""
    own, labels = frozen_calibrations(model)
    for one, classes in ((own, len(task.outputs)), *((one, 2) for one in labels.values())):
        if one is not None and one.classes != classes:
            raise ValueError(f"a calibration of {one.classes} classes stands where there are {classes}")


def _packed(tissue: Tissue) -> Json:
    """Lists of the lengths of each polygon's rings, and all their points one after another, in base64 of zlib of int32 steps."""
    points = np.concatenate([ring for polygon in tissue for ring in polygon])
    steps = np.diff(points, axis=0, prepend=np.zeros((1, 2), np.int64)).astype("<i4")
    return {
        "rings": [[len(ring) for ring in polygon] for polygon in tissue],
        "steps": b64encode(zlib.compress(steps.tobytes(), 1)).decode("ascii"),
    }


def _tissue(packed: Json) -> Tissue:
    if packed is None:
        return ()
    if not isinstance(packed, dict):
        raise TypeError("tissue is no mapping of rings and steps")
    lengths: list[list[int]] = packed["rings"]
    steps = np.frombuffer(zlib.decompress(b64decode(str(packed["steps"]), validate=True)), "<i4").reshape(-1, 2)
    if len(steps) != sum(map(sum, lengths)) or any(min(polygon, default=0) < 1 for polygon in lengths):
        raise ValueError(f"tissue has {len(steps)} points for rings of {sum(map(sum, lengths))}")
    points = np.cumsum(steps, axis=0, dtype=np.int64)
    ends = np.cumsum([length for polygon in lengths for length in polygon])[:-1]
    rings = iter(np.split(points, ends))
    return tuple(tuple(next(rings) for _ in polygon) for polygon in lengths)
