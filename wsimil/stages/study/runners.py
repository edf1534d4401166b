"""Which runner does which stage; each is imported when its stage begins, as they bring much with them."""

from __future__ import annotations

from wsimil.stages.progress import Reporter
from wsimil.stages.study.planning import EXTRACT, OVERLAYS, PREDICT, TRAIN, Study
from wsimil.worklist import Ledger, Stage
from wsimil.worklist.worker import Runner


def runner_of(stage: Stage, study: Study, ledger: Ledger, watch: Reporter) -> Runner:
    """The runner of a stage. Raises WsimilError where it could do no unit."""
    if stage.name == EXTRACT:
        from wsimil.stages.study.extracting import ExtractRunner

        return ExtractRunner(study, ledger, watch)
    if stage.name == TRAIN:
        from wsimil.stages.study.training import TrainRunner

        return TrainRunner(study, ledger, watch)
    if stage.name == PREDICT:
        from wsimil.stages.study.predicting import PredictRunner

        return PredictRunner(study, ledger, watch)
    if stage.name == OVERLAYS:
        from wsimil.stages.study.overlays import OverlayRunner

        return OverlayRunner(study, ledger, watch)
    from wsimil.stages.study.reporting import ReportRunner

    return ReportRunner(study, ledger, watch)
