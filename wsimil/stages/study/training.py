"""Units of training: one run each; a run that is taken over goes on from its last checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import replace

from wsimil.errors import ConfigError
from wsimil.files import write_text
from wsimil.mil.facts import CHECKPOINTS
from wsimil.stages.features import open_features
from wsimil.stages.progress import Reporter
from wsimil.stages.study.planning import RUNS, TRAIN, Study
from wsimil.stages.study.reasons import reason_of
from wsimil.stages.study_summary import sum_up
from wsimil.stages.train import train
from wsimil.stages.work_items import STUDY, WorkItem, study_text
from wsimil.training.checkpoint import checkpoint_place
from wsimil.worklist import Ledger
from wsimil.worklist.ledger import Attempt
from wsimil.worklist.worker import Failed, Made, Outcome


class TrainRunner:
    """See `wsimil.worklist.worker.Runner`. Raises ConfigError where cohort or splits are not those that were planned with."""

    def __init__(self, study: Study, ledger: Ledger, watch: Reporter) -> None:
        self._study, self._ledger, self._watch = study, ledger, watch
        self._items = study.items()
        self._refuse_other_features()

    def run(self, attempts: Iterator[Attempt]) -> Generator[Outcome, None, None]:
        """One run after another."""
        for attempt in attempts:
            yield self._end(attempt) if attempt.unit.last else self._train(attempt)

    def place(self, attempt: Attempt) -> str:
        """See `wsimil.worklist.worker.GoesOn`. Raises TrainingError."""
        return checkpoint_place(attempt.scratch / RUNS / attempt.unit.name)

    def _train(self, attempt: Attempt) -> Outcome:
        item = self._items[attempt.unit.name]
        folder = f"{RUNS}/{item.name}"
        here = replace(item, out=attempt.scratch / folder)
        try:
            write_text(here.config_file, item.config.to_yaml())
            if item.is_done():  # by a try that died before it could say so
                here.out.mkdir()  # nothing, which leaves what is there and has the receipt name it
                return Made(attempt=attempt, folders=(folder,))
            _refuse_another_run(item)
            self._refuse_other_features()
            _go_on(attempt, folder, self._ledger.look(attempt.unit.id).forgiven)
            made_of = here.made_of()
            made = train(item.config, item.features, item.cohort, here.out, reporter=self._watch)
            # At the end, so that whatever it has read before was as planned.
            self._study.refuse_changed_files()
            self._refuse_other_features()
            here.mark_done(made_of, contents=made.contents)
        except Exception as error:  # noqa: BLE001 - one bad run never stops the others; it is recorded
            return Failed.of(attempt, error)
        return Made(attempt=attempt, folders=(folder,))

    def _refuse_other_features(self) -> None:
        store = open_features(self._study.features)
        self._study.refuse_other_features(store, self._ledger)
        self._study.refuse_replaced_features(store, self._ledger)

    def _end(self, attempt: Attempt) -> Outcome:
        """The tables of a study. Reads the runs where they are, and writes beside nothing but its own."""
        scanned = self._ledger.scan()
        failures = {
            unit.name: reason_of(self._ledger, unit.id, scanned[unit.id])
            for unit in self._study.plan.stage(TRAIN).units
            if not unit.last and not self._study.was_trained(unit.name, self._ledger)
        }
        out = attempt.scratch / RUNS
        out.mkdir(parents=True, exist_ok=True)
        items = list(self._items.values())
        write_text(out / STUDY, study_text(items, self._study.folder / RUNS))
        sum_up(items, failures, out)
        return Made(attempt=attempt, summary={"runs": len(items), "failed": len(failures)})


def _refuse_another_run(item: WorkItem) -> None:
    if item.out.is_dir() and any(item.out.iterdir()):
        raise ConfigError(
            f"{item.out} is not this run: somebody else put it there, or cohort or features were elsewhere when it was made; move"
            " it away"
        )


def _go_on(attempt: Attempt, folder: str, forgiven: int) -> None:
    """Take what a try before left: its checkpoint is one file, whole at any time, whatever became of the rest.

    Not of tries up to `forgiven`: they may have learned from what was mended since.
    """
    for number in range(attempt.number - 1, forgiven, -1):
        left = attempt.scratch.with_name(f"{attempt.unit.id}.{number}") / folder
        if any((left / CHECKPOINTS).glob("*.safetensors")):
            # Its worker may be alive after all and write, or others may clear it away: then we start anew.
            with suppress(shutil.Error, FileNotFoundError):
                shutil.copytree(left, attempt.scratch / folder, ignore=shutil.ignore_patterns(".*"))
                return
            shutil.rmtree(attempt.scratch / folder, ignore_errors=True)
