"""export: tile scores that a prediction left, in the forms that viewers read."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path

from wsimil.errors import ConfigError, OutputError, StoreError, WsimilError
from wsimil.evaluation.table import inert
from wsimil.export.cohort_range import CohortRange
from wsimil.export.formats import FORMATS, PICTURE, SEVERAL, WINDOWED, Beside, Format
from wsimil.export.heatmap import Heatmap, rank_heatmap, raw_heatmap
from wsimil.export.scores import ScoreTable, Tissue, read_scores
from wsimil.export.shown import kind_of
from wsimil.export.span import RangeKind
from wsimil.extraction.sources import SlideSource, clashes, list_sources
from wsimil.files import check_writable, write_text
from wsimil.geometry import Origin
from wsimil.stages.features import is_feature_folder, open_features
from wsimil.stages.interrupt import interrupt
from wsimil.stages.listed import Listed
from wsimil.stages.occupied import occupied
from wsimil.stages.progress import Quiet, Reporter
from wsimil.stages.run_folder import refuse_failures
from wsimil.store import FeatureStore
from wsimil.store.base import is_slide_id, slide_path
from wsimil.tissue.geojson import read_polygons

FOLDER = "export"
"""Within the predictions, where no other place is named."""
_FAILURES = "failures.csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """`formats` are names of `FORMATS`; `score` as in `Beside`. `origin` says from where coordinates count.

    `range` is what the colors of pictures and of DSA annotations and the windows of DICOM maps span: one range for all slides,
    each slide's own, or, of pictures alone, the ranks of its tiles.

    `features` is the folder that was predicted, for thumbnails, and for tissue that score tables of before do not hold; `slides`
    a slide, a folder of them or a manifest, for forms that need them.
    """

    formats: tuple[str, ...]
    score: str | None = None
    range: RangeKind = "cohort"
    origin: Origin = "bounds"
    features: Path | None = None
    slides: Path | None = None

    def __post_init__(self) -> None:
        if not self.formats:
            raise ConfigError(f"--to names no form; wanted some of {', '.join(FORMATS)}")
        for name in self.formats:
            if name not in FORMATS:
                close = get_close_matches(name, FORMATS, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise ConfigError(f"--to {name!r}: wanted some of {', '.join(FORMATS)}{hint}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportFailure:
    """A slide that could not be written in one form, or in any where `form` is empty."""

    slide_id: str
    form: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSummary:
    """`written` counts the files of each form; `notes` are for whoever looks at them."""

    slides: int
    written: Mapping[str, int]
    failures: tuple[ExportFailure, ...]
    notes: tuple[str, ...] = ()


def export(
    predictions: Path,
    out: Path | None = None,
    *,
    options: ExportOptions,
    now: datetime,
    reporter: Reporter | None = None,
) -> ExportSummary:
    """Write every slide of `predictions`/scores in every form of `options` into `out`, which is `predictions`/export by default.

    What stood at these names before is replaced. A slide that fails stands in failures.csv and the rest goes on; nothing of an
    earlier export is left at its name. Scores of another answer than `predictions` list fail, and where no answers are listed
    those of another model than the first slide's. Raises WsimilError for what concerns all slides; also where another process is
    at work in `out`, or features or answers lie there.
    """
    out = out or predictions / FOLDER
    refuse_failures(out)
    tables = _tables(predictions)
    with occupied(out):
        return _exported(predictions, tables, out, options, now, reporter or Quiet())


def _exported(
    predictions: Path, tables: Sequence[Path], out: Path, options: ExportOptions, now: datetime, reporter: Reporter
) -> ExportSummary:
    listed = Listed.of(predictions)
    features = options.features
    store = open_features(features) if features is not None and is_feature_folder(features) else None
    slides = {} if options.slides is None else _slides(options.slides)
    check_writable(out)
    forms = [FORMATS[name] for name in dict.fromkeys(options.formats)]
    written = dict.fromkeys(options.formats, 0)
    failures: list[ExportFailure] = []
    for form in forms:
        if form.once is not None:
            form.once(out / form.folder)
    ranges = _ranges(tables, listed, options)
    reporter.begin("slides", len(tables))
    for path in tables:
        interrupt.check()
        reporter.item(path.stem, 0)
        try:
            table = _with_tissue(_read(path, listed), options, store)
        except WsimilError as error:
            failures.append(ExportFailure(slide_id=path.stem, form="", reason=str(error)))
            for form in forms if is_slide_id(path.stem) else ():
                _remove(slide_path(out / form.folder, path.stem, form.suffix))
            reporter.finish_item(f"{path.stem}: FAILED: {error}")
            continue
        failed = _export(table, forms, out, options, ranges, slides.get(table.slide_id), now)
        failures += failed
        for form in forms:
            written[form.name] += form.name not in {failure.form for failure in failed}
        reporter.finish_item(f"{path.stem}: " + ("; ".join(f"{f.form} FAILED: {f.reason}" for f in failed) or "done"))
    _write_failures(out / _FAILURES, failures)
    return ExportSummary(
        slides=len(tables), written=written, failures=tuple(failures), notes=_notes(predictions, len(tables))
    )


def _notes(predictions: Path, slides: int) -> tuple[str, ...]:
    if (predictions / "predictions.csv").is_file():
        return ()
    return (
        f"{predictions} holds score tables of {slides} slides and no predictions.csv: the prediction did not come to its end, or"
        " its scores alone were copied; there may be more slides, and the range of colors is that of these",
    )


def write_formats(table: ScoreTable, names: Sequence[str], out: Path, beside: Beside) -> None:
    """Write one slide in some of `FORMATS`. Raises WsimilError at the first that fails."""
    for name in names:
        form = FORMATS[name]
        form.write(slide_path(out / form.folder, table.slide_id, form.suffix), table, beside)


def remove_exports(predictions: Path) -> None:
    """Remove what was exported of earlier predictions from beside them; exports to other places stay."""
    for form in FORMATS.values():
        for path in (predictions / FOLDER / form.folder).glob(f"*{form.suffix}"):
            _remove(path)
    _remove(predictions / FOLDER / _FAILURES)


def tissue_of(features: Path, slide_id: str, bounds0_px: tuple[int, int, int, int]) -> Tissue:
    """What extraction took for tissue, level-0 px; empty where its file is not there. Raises SlideError where it is broken."""
    path = slide_path(features / "tissue", slide_id, ".geojson")
    return read_polygons(path, slide_id=slide_id, bounds0_px=bounds0_px) if path.is_file() else ()


def thumbnail_of(features: Path, slide_id: str) -> Path:
    """Where extraction left a picture of the whole slide."""
    return slide_path(features / "thumbnails", slide_id, ".jpg")


def _export(
    table: ScoreTable,
    forms: Sequence[Format],
    out: Path,
    options: ExportOptions,
    ranges: _Ranges,
    slide: Path | None,
    now: datetime,
) -> list[ExportFailure]:
    thumbnail = None if options.features is None else thumbnail_of(options.features, table.slide_id)
    beside = Beside(
        now=now, score=options.score, origin=options.origin, spans=ranges.spans(table), thumbnail=thumbnail, slide=slide
    )
    failed: list[ExportFailure] = []
    for form in forms:
        path = slide_path(out / form.folder, table.slide_id, form.suffix)
        try:
            if form.name == PICTURE:
                beside = replace(beside, heatmap=_heatmap(table, options, ranges.cohort))
            form.write(path, table, beside)
        except (OutputError, ConfigError):
            raise  # concerns every slide
        except (WsimilError, KeyError, ValueError) as error:
            _remove(path)
            reason = str(error.args[0]) if isinstance(error, KeyError) else str(error)
            failed.append(ExportFailure(slide_id=table.slide_id, form=form.name, reason=reason))
    return failed


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ranges:
    """The range of colors of all slides, of each kind of score; None where each slide has its own."""

    cohort: CohortRange | None = None

    def add(self, table: ScoreTable, options: ExportOptions) -> None:
        """Count in one slide."""
        if self.cohort is None:
            return
        if options.score is not None:
            self.cohort.add(table, options.score)
        elif {SEVERAL, WINDOWED} & set(options.formats):
            self.cohort.add_each(table, table.score_names)
        else:
            self.cohort.add(table, table.main_score)

    def spans(self, table: ScoreTable) -> dict[str, tuple[float, float]]:
        """Of each score of a slide whose kind was counted in."""
        if self.cohort is None:
            return {}
        known = [name for name in table.score_names if self.cohort.slides(name)]
        return {name: self.cohort.span(name, kind_of(table, name)) for name in known}


def _ranges(tables: Sequence[Path], listed: Listed, options: ExportOptions) -> _Ranges:
    """The ranges that the forms of `options` need; a table that cannot be read fails when its turn comes."""
    if options.range != "cohort" or not {PICTURE, SEVERAL, WINDOWED} & set(options.formats):
        return _Ranges()
    found = _Ranges(cohort=CohortRange())
    for path in tables:
        interrupt.check()
        with suppress(WsimilError, KeyError):
            found.add(_read(path, listed), options)
    return found


def _heatmap(table: ScoreTable, options: ExportOptions, cohort: CohortRange | None) -> Heatmap:
    name = options.score or table.main_score
    if options.range == "rank":
        return rank_heatmap(table, name)
    if cohort is None:
        return raw_heatmap(table, name)
    return raw_heatmap(table, name, cohort_range=cohort.span(name, kind_of(table, name)), slides=cohort.slides(name))


def _tables(predictions: Path) -> list[Path]:
    folder = predictions / "scores"
    found = [path for path in sorted(folder.glob("*.parquet")) if not path.name.startswith(".")]
    if not found:
        raise ConfigError(f"{folder} holds no score tables; give a folder that wsimil predict wrote")
    return found


def _read(path: Path, listed: Listed) -> ScoreTable:
    table = read_scores(path)
    slide_path(path.parent, table.slide_id, path.suffix)  # refuses an id that cannot be a file name
    if table.slide_id != path.stem:
        raise StoreError(
            f"score table {path.name} is of slide {table.slide_id!r}, whose file has another name; give it back its name, or"
            " predict again"
        )
    listed.refuse_another(table)
    return table


def _with_tissue(table: ScoreTable, options: ExportOptions, store: FeatureStore | None) -> ScoreTable:
    if store is not None:
        _refuse_other_features(table, store)
    if options.features is None or table.tissue:
        return table
    return replace(table, tissue=tissue_of(options.features, table.slide_id, table.bounds0_px))


def _refuse_other_features(table: ScoreTable, store: FeatureStore) -> None:
    """Raise StoreError where the pictures beside the features are of another slide than the scores."""
    digest = ""
    with suppress(StoreError):  # it has no features, or broken ones: nothing tells whose the pictures are
        digest = store.header(table.slide_id).provenance.slide_digest
    if (other := table.other_content(digest)) is not None:
        raise StoreError(f"--features holds another slide of this name: {other}")


def _slides(source: Path) -> dict[str, Path]:
    """Slide id -> file. Raises ConfigError where an id is that of two files: nobody could tell which one was scored."""
    found: list[SlideSource] = list_sources(source)
    twice = clashes(found)
    if twice:
        name = next(iter(twice))
        raise ConfigError(
            f"--slides {source}: {len(twice)} ids are those of more than one file, the first {name!r}; give a manifest with one"
            " file for each slide_id"
        )
    return {slide.slide_id: slide.path for slide in found}


def _remove(path: Path) -> None:
    """What an earlier export left must not stand for a slide that failed."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _write_failures(path: Path, failures: Sequence[ExportFailure]) -> None:
    if not failures:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["slide_id", "form", "reason"])
    writer.writerows([inert(f.slide_id), f.form, inert(f.reason)] for f in failures)
    write_text(path, text.getvalue())
