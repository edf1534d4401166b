"""Units of training: one run each; a run that is taken over goes on from its last checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterator
from dataclasses import replace

from wsimil.errors import WsimilError
from wsimil.files import write_text
from wsimil.stages.crossval import study_text, sum_up
from wsimil.stages.features import open_features
from wsimil.stages.progress import Reporter
from wsimil.stages.study.planning import RUNS, TRAIN, Study
from wsimil.stages.study.reasons import reason_of
from wsimil.stages.train import train
from wsimil.training.checkpoint import FOLDER as CHECKPOINT
from wsimil.worklist import Ledger
from wsimil.worklist.faults import is_fault
from wsimil.worklist.ledger import Attempt
from wsimil.worklist.worker import Failed, Made, Outcome


class TrainRunner:
    """See `wsimil.worklist.worker.Runner`. Raises ConfigError where cohort or splits are not those that were planned with."""

    def __init__(self, study: Study, ledger: Ledger, watch: Reporter) -> None:
        self._study, self._ledger, self._watch = study, ledger, watch
        self._items = study.items()
        study.refuse_other_features(open_features(study.features))

    def run(self, attempts: Iterator[Attempt]) -> Generator[Outcome, None, None]:
        """One run after another."""
        for attempt in attempts:
            yield self._end(attempt) if attempt.unit.last else self._train(attempt)

    def _train(self, attempt: Attempt) -> Outcome:
        item = self._items[attempt.unit.name]
        folder = f"{RUNS}/{item.name}"
        if item.is_done():  # by a try that died before it could say so
            return Made(attempt=attempt)
        here = replace(item, out=attempt.scratch / folder)
        _go_on(attempt, folder)
        try:
            write_text(here.config_file, item.config.to_yaml())
            train(item.config, item.features, item.cohort, here.out, reporter=self._watch)
            here.mark_done()
        except Exception as error:  # noqa: BLE001 - one bad run never stops the others; it is recorded
            known = isinstance(error, WsimilError)
            reason = str(error) if known else f"{type(error).__name__}: {error}"
            return Failed(attempt=attempt, reason=reason, fault=is_fault(error))
        return Made(attempt=attempt, folders=(folder,))

    def _end(self, attempt: Attempt) -> Outcome:
        """The tables of a study. Reads the runs where they are, and writes beside nothing but its own."""
        scanned = self._ledger.scan()
        failures = {
            unit.name: reason_of(self._ledger, unit.id, scanned[unit.id])
            for unit in self._study.plan.stage(TRAIN).units
            if not unit.last and not scanned[unit.id].done
        }
        out = attempt.scratch / RUNS
        out.mkdir(parents=True, exist_ok=True)
        items = list(self._items.values())
        write_text(out / "study.json", study_text(items, self._study.folder / RUNS))
        sum_up(items, failures, out)
        return Made(attempt=attempt, summary={"runs": len(items), "failed": len(failures)})


def _go_on(attempt: Attempt, folder: str) -> None:
    """Take what the try before left: its checkpoint is one file, whole at any time, whatever became of the rest."""
    for number in range(attempt.number - 1, 0, -1):
        left = attempt.scratch.with_name(f"{attempt.unit.id}.{number}") / folder
        if any((left / CHECKPOINT).glob("*.safetensors")):
            shutil.copytree(left, attempt.scratch / folder, ignore=shutil.ignore_patterns(".*"))
            return
