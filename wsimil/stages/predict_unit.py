"""One slide or one patient: its answer, its scores and its heatmaps."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from wsimil.bags import FeatureBag
from wsimil.errors import StoreError
from wsimil.evaluation.decision import Decision
from wsimil.evaluation.patient import predict_patient
from wsimil.evaluation.prediction import Prediction
from wsimil.export.formats import HEATMAPS, Beside
from wsimil.export.scores import Origin, score_table, write_scores
from wsimil.mil.saved import TrainedModel
from wsimil.stages.answers import NO_TILES, Answer, answer_from, answer_of_patient, beside_of, predict_one
from wsimil.stages.cohort_features import PatientBags, StoredBags
from wsimil.stages.export import thumbnail_of, tissue_of, write_formats
from wsimil.store import FeatureStore
from wsimil.store.base import InstanceStore, slide_path


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictOptions:
    """What a user may choose about prediction. `score` is what heatmaps show, None for the contribution to what is predicted.

    `encoder_weights`, `mpp_override`, `batch_size` and `readers` matter where slides are given: the rest of the extraction is
    the model's. `origin` says from where QuPath coordinates count.
    """

    device: str = "auto"
    heatmaps: bool = True
    score: str | None = None
    origin: Origin = "bounds"
    encoder_weights: Path | None = None
    mpp_override: float | None = None
    batch_size: int = 32
    readers: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """An answer, and a line for whoever watches."""

    answer: Answer
    line: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """Where slides or patients are answered for one after another, and what is said of them written into `out`."""

    trained: TrainedModel
    store: FeatureStore
    features: Path
    out: Path
    options: PredictOptions
    decision: Decision | None = None

    def slide(self, slide_id: str) -> Said:
        """One slide. Raises WsimilError."""
        if not self.options.heatmaps and isinstance(self.store, InstanceStore):
            answer = answer_from(self.trained, self.store, slide_id, decision=self.decision)
            return Said(answer=answer, line=f"{slide_id}: {answer.status}, without scores of tiles")
        bag = self.store.read(slide_id)
        _refuse_unknown_bounds(bag, self.options)
        prediction = predict_one(self.trained, bag)
        if prediction is None:
            answer = Answer(slide_id=slide_id, values=None, status=NO_TILES)
            return Said(answer=answer, line=f"{slide_id}: {NO_TILES}, no answer")
        _export(prediction, self.features, self.out, self.options)
        beside = beside_of(self.decision, self.trained, prediction.values, bag.features)
        answer = Answer(slide_id=slide_id, values=prediction.values, beside=beside)
        return Said(answer=answer, line=self._line(slide_id, prediction, len(bag)))

    def patient(self, patient_id: str, slide_ids: tuple[str, ...]) -> Said:
        """One patient of these slides. Raises WsimilError."""
        if not self.options.heatmaps and isinstance(self.store, InstanceStore):
            bags = PatientBags(bags=StoredBags(store=self.store), members={patient_id: slide_ids})
            answer = answer_of_patient(self.trained, bags, patient_id, decision=self.decision)
            return Said(answer=answer, line=f"{patient_id}: {answer.status}, without scores of tiles")
        slides = [self.store.read(slide_id) for slide_id in slide_ids]
        for bag in slides:
            _refuse_unknown_bounds(bag, self.options)
        predictions = predict_patient(self.trained, patient_id, slides)
        for prediction in predictions:
            _export(prediction, self.features, self.out, self.options)
        if not predictions:
            answer = Answer(slide_id=patient_id, values=None, status=NO_TILES, slides=slide_ids)
            return Said(answer=answer, line=f"{patient_id}: {NO_TILES}, no answer")
        tiles = sum(len(bag) for bag in slides)
        line = self._line(patient_id, predictions[0], tiles) + f" of {len(slides)} slides"
        values = predictions[0].values
        beside = beside_of(self.decision, self.trained, values, *(bag.features for bag in slides))
        return Said(answer=Answer(slide_id=patient_id, values=values, slides=slide_ids, beside=beside), line=line)

    def _line(self, unit: str, prediction: Prediction, tiles: int) -> str:
        share = self.trained.task.confidence(prediction.values)
        sure = "" if share is None else f" ({share:.3f})"
        return f"{unit}: {prediction.predicted}{sure}, {tiles} tiles"


def _export(prediction: Prediction, features: Path, out: Path, options: PredictOptions) -> None:
    slide_id = prediction.slide_id
    tissue = tissue_of(features, slide_id, prediction.grid.slide.bounds0_px)
    write_scores(slide_path(out / "scores", slide_id, ".parquet"), prediction, tissue=tissue)
    if not options.heatmaps:
        return
    beside = Beside(
        now=datetime.now(UTC),
        score=options.score,
        origin=options.origin,
        thumbnail=thumbnail_of(features, slide_id),
    )
    write_formats(score_table(prediction, tissue=tissue), HEATMAPS, out, beside)


def _refuse_unknown_bounds(bag: FeatureBag, options: PredictOptions) -> None:
    """Raise StoreError where QuPath would draw tiles at another place than where they lie, and nobody could tell."""
    if options.heatmaps and options.origin == "bounds" and bag.provenance.slide.get("bounds_known", True) is False:
        raise StoreError(
            f"slide {bag.slide_id!r}: where its scan begins is not known, because its features were made by another tool and"
            " converted without the slide, and QuPath counts from there; convert them with --slides, or say --origin level0, or"
            " --no-heatmaps"
        )
