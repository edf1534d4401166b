"""One slide or one patient: its answer, its scores and its heatmaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from wsimil.bags import FeatureBag
from wsimil.errors import StoreError
from wsimil.evaluation.decision import Decision
from wsimil.evaluation.patient import predict_patient
from wsimil.evaluation.prediction import Prediction
from wsimil.export.scores import ScoreTable, score_table, write_scores
from wsimil.export.shown import effective_tiles_of
from wsimil.mil.saved import TrainedModel
from wsimil.stages.answers import NO_TILES, Answer, answer_from, answer_of_patient, beside_of, predict_one
from wsimil.stages.cohort_features import PatientBags, StoredBags
from wsimil.stages.drawing import Drawing
from wsimil.stages.export import tissue_of
from wsimil.stages.predict_options import PredictOptions
from wsimil.store import FeatureStore
from wsimil.store.base import InstanceStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """An answer, a line for whoever watches, and digests of the content of the slides that were read."""

    answer: Answer
    line: str
    contents: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk(Drawing):
    """Where slides or patients are answered for one after another, and what is said of them written into `out`."""

    trained: TrainedModel
    store: FeatureStore
    decision: Decision | None = None

    def slide(self, slide_id: str) -> Said:
        """One slide. Raises WsimilError."""
        if not self.options.heatmaps and isinstance(self.store, InstanceStore):
            answer = answer_from(self.trained, self.store, slide_id, decision=self.decision)
            return Said(answer=answer, line=f"{slide_id}: {answer.status}, without scores of tiles")
        bag = self.store.read(slide_id)
        contents = {slide_id: bag.provenance.slide_digest}
        _refuse_unknown_bounds(bag, self.options)
        prediction = predict_one(
            self.trained,
            bag,
            kinds=self.options.kinds(self.trained.model),
            leave_one_out_tiles=self.options.leave_one_out_tiles,
        )
        if prediction is None:
            answer = Answer(slide_id=slide_id, values=None, status=NO_TILES)
            return Said(answer=answer, line=f"{slide_id}: {NO_TILES}, no answer", contents=contents)
        table = self._export(prediction)
        beside = beside_of(self.decision, self.trained, prediction.values, bag.features)
        answer = Answer(slide_id=slide_id, values=prediction.values, beside=beside)
        return self._said(answer, prediction, f"{len(bag)} tiles", [table], contents)

    def patient(self, patient_id: str, slide_ids: tuple[str, ...]) -> Said:
        """One patient of these slides. Raises WsimilError."""
        if not self.options.heatmaps and isinstance(self.store, InstanceStore):
            bags = PatientBags(bags=StoredBags(store=self.store), members={patient_id: slide_ids})
            answer = answer_of_patient(self.trained, bags, patient_id, decision=self.decision)
            return Said(answer=answer, line=f"{patient_id}: {answer.status}, without scores of tiles")
        slides = [self.store.read(slide_id) for slide_id in slide_ids]
        contents = {bag.slide_id: bag.provenance.slide_digest for bag in slides}
        for bag in slides:
            _refuse_unknown_bounds(bag, self.options)
        predictions = predict_patient(
            self.trained,
            patient_id,
            slides,
            kinds=self.options.kinds(self.trained.model),
            leave_one_out_tiles=self.options.leave_one_out_tiles,
        )
        tables = [self._export(prediction) for prediction in predictions]
        if not predictions:
            answer = Answer(slide_id=patient_id, values=None, status=NO_TILES, slides=slide_ids)
            return Said(answer=answer, line=f"{patient_id}: {NO_TILES}, no answer", contents=contents)
        tiles = sum(len(bag) for bag in slides)
        values = predictions[0].values
        beside = beside_of(self.decision, self.trained, values, *(bag.features for bag in slides))
        answer = Answer(slide_id=patient_id, values=values, slides=slide_ids, beside=beside)
        return self._said(answer, predictions[0], f"{tiles} tiles of {len(slides)} slides", tables, contents)

    def _said(
        self,
        answer: Answer,
        prediction: Prediction,
        tiles: str,
        tables: Sequence[ScoreTable],
        contents: Mapping[str, str],
    ) -> Said:
        line = self._line(answer.slide_id, prediction, tiles, tables)
        if self.options.heatmaps:
            self.add(tables)
        return Said(answer=answer, line=line, contents=contents)

    def _line(self, unit: str, prediction: Prediction, tiles: str, tables: Sequence[ScoreTable]) -> str:
        share = self.trained.task.confidence(prediction.values)
        sure = "" if share is None else f" ({share:.3f})"
        effective = effective_tiles_of(*tables)
        attended = "" if effective is None else f", effectively {effective:,.0f} by attention"
        return f"{unit}: {prediction.predicted}{sure}, {tiles}{attended}"

    def _export(self, prediction: Prediction) -> ScoreTable:
        slide_id = prediction.slide_id
        tissue = tissue_of(self.features, self.identity(slide_id), prediction.grid.slide.bounds0_px)
        write_scores(self.path(slide_id), prediction, tissue=tissue)
        return score_table(prediction, tissue=tissue)


def _refuse_unknown_bounds(bag: FeatureBag, options: PredictOptions) -> None:
    """Raise StoreError where QuPath would draw tiles at another place than where they lie, and nobody could tell."""
    if options.heatmaps and options.origin == "bounds" and not bag.bounds_known:
        raise StoreError(
            f"slide {bag.slide_id!r}: where its scan begins is not known, because its features were made by another tool and"
            " converted without the slide, and QuPath counts from there; convert them with --slides, or say --origin level0, or"
            " --no-heatmaps"
        )
