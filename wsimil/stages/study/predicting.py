"""Units of prediction: a slide or a patient, and a model; what concerns all of a model's answers is done at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import cast

import numpy as np

from wsimil.cohort import read_patients
from wsimil.evaluation.decision import Decision, load_decided
from wsimil.export.cohort_range import CohortRange
from wsimil.export.formats import FORMATS, HEATMAPS
from wsimil.export.scores import read_scores
from wsimil.mil.saved import TrainedModel
from wsimil.provenance import Json
from wsimil.stages.answers import Answer
from wsimil.stages.device import resolve_device
from wsimil.stages.failures import used_though_failed
from wsimil.stages.learned import learned_from
from wsimil.stages.predict import NO_FEATURES, conclude, labels_of, refuse_unknown_score
from wsimil.stages.predict_unit import Desk
from wsimil.stages.progress import Reporter
from wsimil.stages.study.one_by_one import WARM, OneByOne
from wsimil.stages.study.planning import EXTRACT, PREDICT, PREDICTIONS, RUNS, Study
from wsimil.stages.study.reasons import failure_of, reason_of
from wsimil.store.places import failed_ids
from wsimil.worklist import Ledger
from wsimil.worklist.ledger import Attempt
from wsimil.worklist.worker import Made, Outcome

_NOBODY: Mapping[str, Json] = {"failed": "its model was not there when it was asked"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    trained: TrainedModel
    decision: Decision | None


class PredictRunner(OneByOne):
    """See `wsimil.worklist.worker.Runner`. The answer itself is in the receipt, and its scores and heatmaps are files."""

    def __init__(self, study: Study, ledger: Ledger, watch: Reporter) -> None:
        super().__init__(study, ledger, watch)
        self._device = resolve_device("auto")
        self._model = lru_cache(WARM)(self._load)

    def _load(self, run: str) -> _Model | None:
        """None for a run that was set aside."""
        if not self._study.was_trained(run, self._ledger):
            return None
        trained, decision = load_decided(self._study.folder / RUNS / run, device=self._device)
        refuse_unknown_score(trained, self._options)
        return _Model(trained=trained, decision=decision)

    def _desk(self, model: _Model, out: Path) -> Desk:
        return Desk(
            trained=model.trained, store=self._store, features=self._features, out=out, options=self._options,
            decision=model.decision,
        )  # fmt: skip

    def _do(self, attempt: Attempt) -> Outcome:
        return self._end(attempt) if attempt.unit.last else self._answer(attempt)

    def _answer(self, attempt: Attempt) -> Outcome:
        task = attempt.unit.task
        run, unit, slides = str(task["run"]), str(task["unit"]), cast("Sequence[str]", task["slides"])
        model = self._model(run)
        if model is None:
            return Made(attempt=attempt, summary=None)  # which is told where runs are; there is nobody to answer
        desk = self._desk(model, attempt.scratch / PREDICTIONS / run)
        by_patient = desk.trained.bag == "patient"
        lost = [slide for slide in slides if slide not in self._ids]
        if lost:
            # As `wsimil predict` of slides: who lacks one of his slides is not answered for from the rest.
            why = self._why_lost(lost[-1])
            return Made(attempt=attempt, summary={"failed": f"slide {lost[-1]!r}: {why}" if by_patient else why})
        said = desk.patient(unit, tuple(slides)) if by_patient else desk.slide(unit)
        # At the end, so that what was read is what was planned.
        self._study.refuse_replaced_features(self._store, self._ledger, slides)
        return Made(attempt=attempt, summary={**_to_json(said.answer), "contents": {**said.contents}})

    def _why_lost(self, slide: str) -> str:
        for unit in self._study.plan.stage(EXTRACT).units if self._study.config.features is None else ():
            if unit.name == slide and not unit.last:
                return failure_of(self._ledger, unit.id, self._ledger.look(unit.id))[1]
        return NO_FEATURES  # it was not among the slides of the study

    def _end(self, attempt: Attempt) -> Outcome:
        """The tables of a model's answers, and the range of colors of all its overlays."""
        run = str(attempt.unit.task["run"])
        model = self._model(run)
        # Looked at anew: somebody may have trained there since it was loaded.
        if model is None or not self._study.was_trained(run, self._ledger):
            return Made(attempt=attempt, summary={"ranges": {}})
        self._study.refuse_changed_files()
        scanned = self._ledger.scan()
        answers: list[Answer] = []
        failures: dict[str, str] = {}
        contents: dict[str, str] = {}
        asked: list[str] = []
        for unit in self._study.plan.stage(PREDICT).units:
            if unit.last or unit.task["run"] != run:
                continue
            if not scanned[unit.id].done:
                failures[str(unit.task["unit"])] = reason_of(self._ledger, unit.id, scanned[unit.id])
                continue
            said = cast("Mapping[str, Json]", self._ledger.receipt(unit.id)["summary"] or _NOBODY)
            if "failed" in said:
                failures[str(unit.task["unit"])] = str(said["failed"])
            else:
                answers.append(_from_json(said))
                asked += cast("list[str]", unit.task["slides"])
                contents |= cast("Mapping[str, str]", said["contents"])
        folder = self._study.folder / RUNS / run
        out = attempt.scratch / PREDICTIONS / run
        out.mkdir(parents=True, exist_ok=True)
        for form in (FORMATS[name] for name in HEATMAPS if self._options.heatmaps):
            if form.once is not None:
                form.once(out / form.folder)
        known = self._study.config.cohort
        cohort = labels_of(known, model.trained, None)
        patients = {} if known is None else read_patients(known)
        learned = learned_from(folder, model.trained.bag)
        summary = conclude(
            answers, failures, model.trained, folder, learned, cohort, out, contents=contents, patients=patients
        )
        used = used_though_failed(failed_ids(self._study.features), asked)
        for note in (*summary.notes, *map(str, used), *self._left_out(model.trained)):
            self._watch.note(f"{run}: {note}")
        return Made(attempt=attempt, summary={"ranges": self._ranges(run, model)})

    def _left_out(self, trained: TrainedModel) -> list[str]:
        config = self._study.config
        if trained.bag == "slide" or config.cohort is None or config.predict is None or config.predict.slides != "all":
            return []
        unknown = sorted(self._ids - set(read_patients(config.cohort)))
        if not unknown:
            return []
        return [
            f"{len(unknown)} slides are left out, as the cohort file does not tell whose they are: {', '.join(unknown[:5])}"
        ]

    def _ranges(self, run: str, model: _Model) -> dict[str, Json]:
        if not (self._options.heatmaps and self._options.range == "cohort"):
            return {}
        desk = self._desk(model, self._study.folder / PREDICTIONS / run)
        span = CohortRange()
        for path in sorted((desk.out / "scores").glob("*.parquet")):
            table = read_scores(path)
            span.add(table, desk.shown_score(table))
        return span.to_json()


def _to_json(answer: Answer) -> dict[str, Json]:
    values = None if answer.values is None else [float(value) for value in answer.values]
    beside: dict[str, Json] = {k: v if isinstance(v, str) else float(v) for k, v in answer.beside.items()}
    return {
        "slide_id": answer.slide_id, "values": cast("list[Json] | None", values), "status": answer.status,
        "slides": list(answer.slides), "beside": beside,
    }  # fmt: skip


def _from_json(tree: Mapping[str, Json]) -> Answer:
    values = tree["values"]
    return Answer(
        slide_id=str(tree["slide_id"]),
        values=None if values is None else np.asarray(values, dtype=np.float64),
        status=str(tree["status"]),
        slides=tuple(cast("list[str]", tree["slides"])),
        beside=cast("Mapping[str, str | float]", tree["beside"]),
    )
