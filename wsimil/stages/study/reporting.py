"""Units of reporting: one for each config, over all its runs."""

from __future__ import annotations

from collections.abc import Generator, Iterator

from wsimil.errors import ConfigError, WsimilError
from wsimil.stages.evaluate import EvaluateOptions, evaluate
from wsimil.stages.progress import Reporter
from wsimil.stages.study.planning import REPORTS, RUNS, Study
from wsimil.worklist import Ledger
from wsimil.worklist.ledger import Attempt
from wsimil.worklist.worker import Failed, Made, Outcome


class ReportRunner:
    """See `wsimil.worklist.worker.Runner`."""

    def __init__(self, study: Study, ledger: Ledger, watch: Reporter) -> None:
        self._study, self._ledger, self._watch = study, ledger, watch

    def run(self, attempts: Iterator[Attempt]) -> Generator[Outcome, None, None]:
        """As `wsimil evaluate` of the runs of a config that were trained, on what each of them held out."""
        items = self._study.items().values()
        for attempt in attempts:
            config = attempt.unit.name
            own = [item for item in items if item.config_name == config]
            try:
                self._study.refuse_changed_files()
                runs = [item.out for item in own if self._study.was_trained(item.name, self._ledger)]
                if not runs:
                    raise ConfigError(
                        f"none of the {len(own)} runs of {config} is there to report on; all were set aside, see"
                        f" {self._study.folder / RUNS / 'failures.csv'}"
                    )
                evaluate(
                    runs, own[0].cohort, attempt.scratch / REPORTS / config,
                    options=EvaluateOptions(features=self._study.features, split="test"),
                )  # fmt: skip
            except WsimilError as error:
                yield Failed.of(attempt, error)
                continue
            yield Made(attempt=attempt)
