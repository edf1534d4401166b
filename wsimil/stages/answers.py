"""A model's answers for slides, held against what is known of them, and written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wsimil.bags import FeatureBag
from wsimil.cohort import Cohort
from wsimil.evaluation.attribution import LEAVE_ONE_OUT_TILES, ScoreKind
from wsimil.evaluation.decision import Decision, mean_feature
from wsimil.evaluation.prediction import Prediction
from wsimil.evaluation.predictor import answer_values, predict
from wsimil.evaluation.table import Row, write_table
from wsimil.mil.saved import TrainedModel
from wsimil.stages.cohort_features import PatientBags
from wsimil.store import FeatureStore
from wsimil.store.base import InstanceStore

if TYPE_CHECKING:
    from wsimil.evaluation.bootstrap import Estimate

NO_TILES = "no tissue tile"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What is said of one slide: `values` [V] as the task answers, or None and a `status` that says why.

    Where a bag is a patient, `slide_id` is the patient's, and `slides` are those that the answer is of. `beside` is what
    the model's decision says further.
    """

    slide_id: str
    values: NDArray[np.float64] | None
    status: str = "ok"
    slides: tuple[str, ...] = ()
    beside: Mapping[str, str | float] = field(default_factory=dict)


def answer_from(
    trained: TrainedModel, store: FeatureStore, slide_id: str, *, decision: Decision | None = None
) -> Answer:
    """The answer for one slide of a store; an empty one has none. Needs no more than features and the order of their places.

    Raises ModelError where the features do not fit the model, StoreError.
    """
    if not isinstance(store, InstanceStore):
        bag = store.read(slide_id)
        prediction = predict_one(trained, bag, kinds=())
        values, features = (None if prediction is None else prediction.values), bag.features
    else:
        found = store.read_instances(slide_id)
        features = found.features
        if len(found.features):
            trained.check_features(store.header(slide_id).provenance, f"slide {slide_id!r}")
            values = answer_values(trained, found.features, found.order_xy, slide_id=slide_id)
        else:
            values = None
    if values is None:
        return Answer(slide_id=slide_id, values=None, status=NO_TILES)
    return Answer(slide_id=slide_id, values=values, beside=beside_of(decision, trained, values, features))


def beside_of(
    decision: Decision | None,
    trained: TrainedModel,
    values: NDArray[np.float64],
    *features: NDArray[np.float16] | NDArray[np.float32],
) -> dict[str, str | float]:
    """What a decision says beside the answer for a bag that is made of `features` [n, D] each."""
    if decision is None or not any(len(part) for part in features):
        return {}
    filled = [part for part in features if len(part)]
    means = np.stack([mean_feature(part) for part in filled])
    mean = np.average(means, axis=0, weights=[len(part) for part in filled])
    return decision.beside(values, mean, trained.task)


def answer_of_patient(
    trained: TrainedModel, bags: PatientBags, patient_id: str, *, decision: Decision | None = None
) -> Answer:
    """The answer for all slides of a patient; there is none where none of them has a tile.

    Raises ModelError where features do not fit the model, StoreError.
    """
    slides = bags.members[patient_id]
    headers = {slide_id: bags.bags.store.header(slide_id) for slide_id in slides}
    filled = tuple(slide_id for slide_id, header in headers.items() if header.n)
    if not filled:
        return Answer(slide_id=patient_id, values=None, status=NO_TILES, slides=slides)
    for slide_id in filled:
        trained.check_features(headers[slide_id].provenance, f"slide {slide_id!r}")
    found = replace(bags, members={patient_id: filled}).load(patient_id)
    values = answer_values(trained, found.features, found.xy0, slide_id=patient_id)
    beside = beside_of(decision, trained, values, found.features)
    return Answer(slide_id=patient_id, values=values, slides=slides, beside=beside)


def predict_one(
    trained: TrainedModel,
    bag: FeatureBag,
    *,
    kinds: Sequence[ScoreKind] | None = None,
    leave_one_out_tiles: int = LEAVE_ONE_OUT_TILES,
) -> Prediction | None:
    """The prediction for one bag, None for an empty one. Raises ModelError where the features do not fit the model."""
    trained.check_features(bag.provenance, f"slide {bag.slide_id!r}")
    if not len(bag):
        return None
    return next(predict(trained, [bag], kinds=kinds, leave_one_out_tiles=leave_one_out_tiles))


def estimate_splits(answers: Sequence[Answer], cohort: Cohort) -> dict[str, dict[str, Estimate]]:
    """Metrics with 95 % intervals for each split of the cohort that has answers; slides without an answer do not count."""
    # Statistics, and scikit-learn with them, which answers alone do not need.
    from wsimil.evaluation.bootstrap import estimates
    from wsimil.evaluation.task_metrics import cases_of

    known = {slide.slide_id: slide for slide in cohort.slides}
    result: dict[str, dict[str, Estimate]] = {}
    for split in sorted({known[a.slide_id].split or "all" for a in answers if a.slide_id in known}):
        pairs = [
            (known[a.slide_id], a.values)
            for a in answers
            if a.values is not None and a.slide_id in known and (known[a.slide_id].split or "all") == split
        ]
        if pairs:
            slides = [slide for slide, _ in pairs]
            cases = cases_of(cohort.task, cohort.targets(slides), np.stack([v for _, v in pairs]))
            result[split] = estimates(cases, [slide.patient_id for slide in slides])
    return result


def write_answers(
    folder: Path,
    answers: Sequence[Answer],
    trained: TrainedModel,
    *,
    cohort: Cohort | None = None,
    splits: Mapping[str, str] | None = None,
) -> None:
    """Write predictions.csv and .parquet of `trained`; what `cohort` knows of a slide stands beside its answer, `splits` wins
    over it."""
    known = {slide.slide_id: slide for slide in cohort.slides} if cohort else {}
    rows = []
    for one in answers:
        slide = known.get(one.slide_id)
        rows.append(
            Row(
                slide_id=one.slide_id,
                patient_id=one.slide_id if trained.bag == "patient" else slide.patient_id if slide else "",
                values=one.values,
                label=slide.label if slide else "",
                split=(splits or {}).get(one.slide_id, (slide.split or "") if slide else ""),
                status=one.status,
                slides=tuple(sorted(one.slides)),  # under names they are answered for in the order of ids
                beside=one.beside,
            )
        )
    write_table(folder, rows, task=trained.task, bag=trained.bag, answered_by=trained.answers)
