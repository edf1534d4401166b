"""One slide or one patient: its answer, its scores and its heatmaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from wsimil.bags import FeatureBag
from wsimil.errors import StoreError
from wsimil.evaluation.attribution import SCORE_KINDS, ScoreKind, default_kinds
from wsimil.evaluation.decision import Decision
from wsimil.evaluation.patient import predict_patient
from wsimil.evaluation.prediction import Prediction
from wsimil.export.cohort_range import CohortRange
from wsimil.export.formats import FORMATS, HEATMAPS, Beside
from wsimil.export.heatmap import Heatmap, rank_heatmap, raw_heatmap
from wsimil.export.scores import Origin, ScoreTable, read_scores, score_table, write_scores
from wsimil.export.shown import effective_tiles_of, shown
from wsimil.mil.base import MILModel
from wsimil.mil.saved import TrainedModel
from wsimil.pseudonyms import Pseudonyms
from wsimil.stages.answers import NO_TILES, Answer, answer_from, answer_of_patient, beside_of, predict_one
from wsimil.stages.cohort_features import PatientBags, StoredBags
from wsimil.stages.export import RangeKind, thumbnail_of, tissue_of, write_formats
from wsimil.stages.interrupt import interrupt
from wsimil.stages.progress import Reporter
from wsimil.store import FeatureStore
from wsimil.store.base import InstanceStore, slide_path


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictOptions:
    """What a user may choose about prediction.

    `scores` are the kinds that tiles get, None for those of `default_kinds`. `score` is what
    overlays show, None for the first of those of what is predicted; its kind need not stand in `scores` too. `range` is what
    the colors of overlays span: one range for all slides, each slide's own, or the ranks of its tiles.
    `encoder_weights`, `mpp_override`, `batch_size` and `readers` matter where slides are given: the rest of the extraction is
    the model's. `origin` says from where QuPath coordinates count. `pseudonyms` is a file of names that stand for slides and
    patients in everything that is written and said; it is made where it is not there.
    """

    device: str = "auto"
    heatmaps: bool = True
    scores: tuple[ScoreKind, ...] | None = None
    score: str | None = None
    range: RangeKind = "cohort"
    origin: Origin = "bounds"
    encoder_weights: Path | None = None
    mpp_override: float | None = None
    batch_size: int = 32
    readers: int = 2
    pseudonyms: Path | None = None

    def kinds(self, model: MILModel) -> tuple[ScoreKind, ...]:
        """The kinds of scores that are made of this model's answers."""
        wanted = default_kinds(model) if self.scores is None else self.scores
        of_overlays = (self.score or "").partition(":")[0]
        return tuple(kind for kind in SCORE_KINDS if kind in wanted or kind == of_overlays)


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """An answer, and a line for whoever watches."""

    answer: Answer
    line: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """Where slides or patients are answered for one after another, and what is said of them written into `out`.

    Overlays whose colors span one range for all slides wait for `draw`, as ids of slides and names of scores.
    """

    trained: TrainedModel
    store: FeatureStore
    features: Path
    out: Path
    options: PredictOptions
    decision: Decision | None = None
    names: Pseudonyms | None = None
    cohort: CohortRange = field(default_factory=CohortRange)
    waiting: list[tuple[str, str]] = field(default_factory=list)

    def slide(self, slide_id: str) -> Said:
        """One slide. Raises WsimilError."""
        if not self.options.heatmaps and isinstance(self.store, InstanceStore):
            answer = answer_from(self.trained, self.store, slide_id, decision=self.decision)
            return Said(answer=answer, line=f"{slide_id}: {answer.status}, without scores of tiles")
        bag = self.store.read(slide_id)
        _refuse_unknown_bounds(bag, self.options)
        prediction = predict_one(self.trained, bag, kinds=self.options.kinds(self.trained.model))
        if prediction is None:
            answer = Answer(slide_id=slide_id, values=None, status=NO_TILES)
            return Said(answer=answer, line=f"{slide_id}: {NO_TILES}, no answer")
        table = self._export(prediction)
        beside = beside_of(self.decision, self.trained, prediction.values, bag.features)
        answer = Answer(slide_id=slide_id, values=prediction.values, beside=beside)
        return Said(answer=answer, line=self._line(slide_id, prediction, f"{len(bag)} tiles", [table]))

    def patient(self, patient_id: str, slide_ids: tuple[str, ...]) -> Said:
        """One patient of these slides. Raises WsimilError."""
        if not self.options.heatmaps and isinstance(self.store, InstanceStore):
            bags = PatientBags(bags=StoredBags(store=self.store), members={patient_id: slide_ids})
            answer = answer_of_patient(self.trained, bags, patient_id, decision=self.decision)
            return Said(answer=answer, line=f"{patient_id}: {answer.status}, without scores of tiles")
        slides = [self.store.read(slide_id) for slide_id in slide_ids]
        for bag in slides:
            _refuse_unknown_bounds(bag, self.options)
        predictions = predict_patient(self.trained, patient_id, slides, kinds=self.options.kinds(self.trained.model))
        tables = [self._export(prediction) for prediction in predictions]
        if not predictions:
            answer = Answer(slide_id=patient_id, values=None, status=NO_TILES, slides=slide_ids)
            return Said(answer=answer, line=f"{patient_id}: {NO_TILES}, no answer")
        tiles = sum(len(bag) for bag in slides)
        line = self._line(patient_id, predictions[0], f"{tiles} tiles of {len(slides)} slides", tables)
        values = predictions[0].values
        beside = beside_of(self.decision, self.trained, values, *(bag.features for bag in slides))
        return Said(answer=Answer(slide_id=patient_id, values=values, slides=slide_ids, beside=beside), line=line)

    def forget(self, slide_ids: Sequence[str]) -> None:
        """Remove what was written of slides whose answer failed."""
        for slide_id in slide_ids:
            self._path(slide_id).unlink(missing_ok=True)
            for form in (FORMATS[name] for name in HEATMAPS):
                slide_path(self.out / form.folder, slide_id, form.suffix).unlink(missing_ok=True)
        self.waiting[:] = [one for one in self.waiting if one[0] not in slide_ids]

    def draw(self, reporter: Reporter) -> None:
        """The overlays that waited, from the scores on disk, one after another."""
        if not self.waiting:
            return
        reporter.begin("overlays", len(self.waiting))
        for slide_id, name in self.waiting:
            interrupt.check()
            reporter.item(slide_id, 0)
            self.overlay(read_scores(self._path(slide_id)), name)
            reporter.finish_item(f"{slide_id}: overlay of {name}")
        self.waiting.clear()

    def overlay(self, table: ScoreTable, name: str) -> None:
        """The overlay of a slide, in the colors of the cohort's range."""
        span = self.cohort.span(name, shown(table, name).kind)
        self._draw(table, raw_heatmap(table, name, cohort_range=span, slides=self.cohort.slides(name)))

    def shown_score(self, table: ScoreTable) -> str:
        """The score that overlays show."""
        return self.options.score or table.main_score

    def _line(self, unit: str, prediction: Prediction, tiles: str, tables: Sequence[ScoreTable]) -> str:
        share = self.trained.task.confidence(prediction.values)
        sure = "" if share is None else f" ({share:.3f})"
        effective = effective_tiles_of(*tables)
        attended = "" if effective is None else f", effectively {effective:,.0f} by attention"
        return f"{unit}: {prediction.predicted}{sure}, {tiles}{attended}"

    def _export(self, prediction: Prediction) -> ScoreTable:
        slide_id, options = prediction.slide_id, self.options
        tissue = tissue_of(self.features, self._identity(slide_id), prediction.grid.slide.bounds0_px)
        write_scores(self._path(slide_id), prediction, tissue=tissue)
        table = score_table(prediction, tissue=tissue)
        if not options.heatmaps:
            return table
        self._write("qupath", table)
        name = self.shown_score(table)
        if options.range == "cohort":
            self.cohort.add(table, name)
            self.waiting.append((slide_id, name))
        else:
            self._draw(table, (raw_heatmap if options.range == "slide" else rank_heatmap)(table, name))
        return table

    def _draw(self, table: ScoreTable, heatmap: Heatmap) -> None:
        self._write("png", table, heatmap=heatmap)

    def _write(self, form: str, table: ScoreTable, *, heatmap: Heatmap | None = None) -> None:
        beside = Beside(
            now=datetime.now(UTC),
            origin=self.options.origin,
            heatmap=heatmap,
            thumbnail=thumbnail_of(self.features, self._identity(table.slide_id)),
        )
        write_formats(table, (form,), self.out, beside)

    def _identity(self, slide_id: str) -> str:
        """The name of the slide's files in the folder that is predicted."""
        return slide_id if self.names is None else self.names.identity(slide_id)

    def _path(self, slide_id: str) -> Path:
        return slide_path(self.out / "scores", slide_id, ".parquet")


def _refuse_unknown_bounds(bag: FeatureBag, options: PredictOptions) -> None:
    """Raise StoreError where QuPath would draw tiles at another place than where they lie, and nobody could tell."""
    if options.heatmaps and options.origin == "bounds" and bag.provenance.slide.get("bounds_known", True) is False:
        raise StoreError(
            f"slide {bag.slide_id!r}: where its scan begins is not known, because its features were made by another tool and"
            " converted without the slide, and QuPath counts from there; convert them with --slides, or say --origin level0, or"
            " --no-heatmaps"
        )
